import base64
import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from finished_run import (
    FILTERED,
    HOSTILE,
    JIGSAW,
    QUARANTINED,
    ROTATION,
    finish_run,
    shards_with_losses,
)
from page import Page
from PIL import Image

from pipeline.config import ConfigError
from pipeline.shards.manifest import Ledger, read_manifest
from training.report.page import write_report
from training.report.results import read_results

NAMES = ("trunk", "layer", "train_images", "test_images")
SCORES = ("score", "low", "high")
PRETEXTS = {
    "context": {"name": "context", "patch_px": 16, "gap_px": 4, "jitter_px": 1}
    | {"min_pixels": 2000, "max_pixels": 4000},
    "rotation": ROTATION,
}
PRETEXTS["multitask"] = {
    "name": "multitask",
    "tasks": [{"name": "jigsaw", "crop_px": 48, "tile_px": 12}, *PRETEXTS.values()],
    "weights": [1, 1, 2],
}


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """A run of one epoch with its transfer; its ledger lists excluded inputs."""
    root = tmp_path_factory.mktemp("report")
    return finish_run(root / "run", shards_with_losses(shards, root / "shards"), JIGSAW)


@pytest.fixture(scope="module")
def page(finished):
    return Page(write_report(finished.out, lambda _: None).read_text(encoding="utf-8"))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that a test may modify."""
    return shutil.copytree(finished.out, tmp_path / "run")


def _forget_transfer(run):
    (run / "transfer.json").unlink()
    shutil.rmtree(run / "transfer")


def _text(folder):
    return Page(write_report(folder, lambda _: None).read_text(encoding="utf-8")).text


def test_the_page_loads_nothing(page):
    assert not page.of("link", "iframe", "object", "embed", "base")
    assert page.of("script") == [{}]
    targets = [a[key] for _, a in page.elements for key in ("src", "href", "srcset") if key in a]
    assert targets
    assert all(target.startswith(("data:image/", "#")) for target in targets)
    assert "url(" not in page.source
    assert "@import" not in page.source
    policies = [a["content"] for a in page.of("meta") if "http-equiv" in a]
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    own = f"script-src 'sha256-{digest}'"
    assert policies == [f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; {own}"]


def test_every_reason_stands_with_its_count(page):
    for reason, count in {**QUARANTINED, **FILTERED}.items():
        assert any(row[:2] == [reason, str(count)] for row in page.rows)
    assert "213 inputs = 198 accepted + 5 quarantined + 4 filtered + 6 duplicate:" in page.text


def test_every_score_stands_in_the_table(page, finished):
    with (finished.out / "results.csv").open(newline="") as file:
        expected = [
            [*(row[key] for key in NAMES), *(f"{float(row[key]):.1f}" for key in SCORES)]
            for row in csv.DictReader(file)
        ]
    assert len(expected) >= 40
    heads = next(row for row in page.rows if "Shared images" in row)
    shown = [row for row in page.rows if len(row) == len(heads) and row is not heads]
    assert sorted([*row[1:3], *row[6:8], *row[3:6]] for row in shown) == sorted(expected)
    assert {row[0] for row in shown} >= {"svm", "low_shot, k = 4", "knn, k = 5", "retrieval"}
    assert all("pretrain/test" in row[9] for row in shown)


def test_the_best_layer_of_every_job_is_bold(page, finished):
    raw = json.loads((finished.out / "transfer.json").read_text())
    (row,) = [row for row in page.rows if row[0] == "svm" and len(row) == 4]
    best = {name: raw[f"best_{name}"] for name in ("random", "pretrained")}
    for cell, (name, score) in zip(row[1:3], best.items(), strict=True):
        assert cell.startswith(f"{score:.1f}")
        assert ("(highest)" in cell) == (score == max(best.values())), name
    gain = best["pretrained"] - best["random"]
    assert row[3].replace("\N{MINUS SIGN}", "-") == f"{gain:+.1f}"


def test_the_pictures_lie_beside_the_page(page, finished):
    folder = finished.out / "report"
    names = {path.name for path in folder.iterdir()}
    puzzles = {f"puzzle-{number}.png" for number in range(4)}
    filters = {"filters-random.png", "filters-pretrained.png"}
    assert names == puzzles | filters | {"samples.png", "retrieval.png"}
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert np.ptp(np.asarray(image.convert("L"))) > 100, path.name


def test_names_are_shown_and_never_run(page):
    assert HOSTILE not in page.source
    assert f"crawl/{HOSTILE}" in page.text
    assert "duplicate of crawl/b & c.jpg" in page.text
    assert ["16.jpg", "quarantined: empty"] in page.rows
    assert ["17.jpg", "quarantined: empty"] not in page.rows  # Only the first 20 are shown.


def test_a_reader_without_eyes_or_mouse_is_served(page):
    assert page.of("html")[0]["lang"] == "en"
    assert all(attributes.get("alt") for attributes in page.of("img"))
    drawn = [a for a in page.of("svg") if a.get("aria-hidden") != "true"]
    assert all(a["role"] == "img" and ("aria-label" in a or "aria-labelledby" in a) for a in drawn)
    assert all(attributes["scope"] in ("row", "col") for attributes in page.of("th"))
    assert len(page.of("caption")) == len(page.of("table"))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    named = " ".join(a.get("aria-labelledby", "") for _, a in page.elements).split()
    links = [a["href"][1:] for a in page.of("a")]
    assert set(named) | set(links) <= set(ids)


def test_the_same_run_gives_the_same_page(page, finished):
    assert write_report(finished.out, lambda _: None).read_text(encoding="utf-8") == page.source


@pytest.mark.parametrize(
    ("name", "words", "not_words"),
    [
        ("context", ["names the direction", "The pair asked first: "], ["permutation", "turned"]),
        ("rotation", ["names the turn", "mirrored"], ["permutation", "direction"]),
        ("multitask", ["among 1,000", "names the direction", "names the turn"], []),
    ],
)
def test_the_page_claims_what_its_pretext_asks(run, name, words, not_words):
    record = yaml.safe_load((run / "config.yaml").read_text())
    record["config"]["pretext"] = PRETEXTS[name]
    (run / "config.yaml").write_text(yaml.safe_dump(record))
    _forget_transfer(run)
    page = Page(write_report(run, lambda _: None).read_text(encoding="utf-8"))
    section = page.text.split("2. What the network sees")[1].split("3. Curves")[0]
    for word in words:
        assert word in section
    for word in not_words:
        assert word not in section.lower()


def test_a_run_without_transfer_says_so(run):
    _forget_transfer(run)
    assert "The transfer has not run: there is no transfer.json" in _text(run)


def test_a_skipped_transfer_says_why(run):
    _forget_transfer(run)
    skipped = {"transfer": {"skipped": "2 classes & more are needed."}}
    (run / "results.json").write_text(json.dumps(skipped))
    assert "The transfer was skipped: 2 classes & more are needed." in _text(run)


def test_what_an_audit_has_found_is_told(run):
    audit = {"ok": False, "fingerprint": "0" * 16, "images": 500, "control_images": 1000}
    one = {"score": 0.9, "interval": [0.85, 0.95], "control_score": 0.5, "limit": 0.25}
    one |= {"ok": False, "open": True, "bug": False}
    fine = {**one, "score": -0.01, "control_score": None, "ok": True, "open": False}
    audit["shortcuts"] = {"edges": one, "draws": fine}
    (run / "audit.json").write_text(json.dumps(audit))
    page = Page(write_report(run, lambda _: None).read_text(encoding="utf-8"))
    assert ["edges", "0.900", "0.850 .. 0.950", "0.500", "0.25", "open"] in page.rows
    assert [row[3] for row in page.rows if row[:1] == ["draws"]] == ["-"]
    assert "The audit found problems; 500 images" in page.text
    assert "other shards than the run" in page.text


def test_an_undecided_shortcut_is_neither_open_nor_closed(run):
    audit = {"ok": True, "fingerprint": "0" * 16, "images": 400, "control_images": 1000}
    one = {"score": 0.023, "interval": [0.007, 0.038], "control_score": 0.0, "limit": 0.02}
    one |= {"ok": True, "open": False, "bug": False}  # As older audits have it.
    audit["shortcuts"] = {"blocks": one, "edges": {**one, "limit": 0.25}}
    (run / "audit.json").write_text(json.dumps(audit))
    page = Page(write_report(run, lambda _: None).read_text(encoding="utf-8"))
    verdicts = {row[0]: row[-1] for row in page.rows if row[:1] in (["blocks"], ["edges"])}
    assert verdicts == {"blocks": "undecided", "edges": "closed"}
    assert "Some shortcuts are undecided; 400 images" in page.text


def test_a_run_that_diverged_is_marked(run):
    assert "This run diverged" not in _text(run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records[-1]["loss"] = float("nan")
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    step = records[-1]["step"]
    assert f"This run diverged : its loss is not finite from step {step} on" in _text(run).replace(
        "diverged:", "diverged :"
    )


def test_each_source_has_its_own_ledger(run, monkeypatch):
    manifest = read_results(run).manifest
    ours = Ledger(inputs=10, accepted=4, quarantined={"empty": 1}, filtered={"a": 2}, duplicate=3)
    sources = {"first <b>": ours, "second": manifest.ledger}
    told = manifest.model_copy(update={"sources": sources})
    monkeypatch.setattr("training.report.results.read_manifest", lambda _: told)
    page = Page(write_report(run, lambda _: None).read_text(encoding="utf-8"))
    assert ["first <b>", "10", "4", "1", "2", "3", "40.0\N{NO-BREAK SPACE}%"] in page.rows


def test_the_commands_and_times_of_a_chain_are_shown(run):
    chain = {"seconds": {"shard": 21.3, "transfer": 700}, "commands": ["tessera shard 'a <b>'"]}
    (run / "results.json").write_text(json.dumps(chain))
    text = _text(run)
    assert "tessera shard 'a <b>'" in text
    assert "11 min 40 s" in text
    assert "sharding, per input 10" in text


def test_a_transfer_alone_has_a_page_of_its_own(run):
    for name in ("config.yaml", "pretrain.json", "metrics.jsonl", "trunk.safetensors"):
        (run / name).unlink()
    text = _text(run)
    for words in ("All jobs at a glance", "Nearest neighbours", "213 inputs = 198 accepted"):
        assert words in text
    repeat = text[text.rindex("How to repeat") :]
    assert repeat.index("tessera transfer transfer.yaml") < repeat.index("tessera report")
    for words in ("tessera pretrain", "tessera shard", "What the network sees", "Curves"):
        assert words not in text


def test_an_unfinished_run_says_so(run):
    _forget_transfer(run)
    for name in ("pretrain.json", "trunk.safetensors"):
        (run / name).unlink()
    text = _text(run)
    assert "The pretraining has not finished: there is no pretrain.json. The last record" in text
    assert "There is no trunk.safetensors yet" in text
    assert "No stage has recorded its time yet." in text
    (run / "metrics.jsonl").unlink()
    assert "There are no records" in _text(run)


def test_shards_that_are_gone_leave_the_rest_readable(finished, run):
    here = Path(finished.data.manifest)
    away = here.rename(here.with_name("away"))
    try:
        text = _text(run)
    finally:
        away.rename(here)
    assert "shards) cannot be read: No such file or directory. Make shards first" in text
    assert "All jobs at a glance" in text


def test_a_damaged_image_is_named_and_the_ledger_stays(finished, run):
    tar = Path(finished.data.manifest) / read_manifest(finished.data.manifest).shards[0].name
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    try:
        text = _text(run)
    finally:
        tar.write_bytes(whole)
    assert "the bytes do not match their hash" in text
    assert "213 inputs = 198 accepted" in text


def test_a_folder_that_is_no_run_is_one_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"^run \(=.*\) holds no config\.yaml of a run; give the "
    ):
        write_report(tmp_path, lambda _: None)
    with pytest.raises(ConfigError, match=r"holds no config\.yaml"):
        write_report(tmp_path / "missing", lambda _: None)
    (tmp_path / "config.yaml").write_text("something: else\n")
    with pytest.raises(ConfigError, match=r"holds no config\.yaml of a run"):
        write_report(tmp_path, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_damaged_result_is_one_line(run):
    (run / "pretrain.json").write_text('{"steps": 1')
    with pytest.raises(ConfigError, match=r"pretrain.json \(=.*\) is damaged; run that stage"):
        write_report(run, lambda _: None)
    (run / "pretrain.json").write_text('{"steps": 1}')
    with pytest.raises(ConfigError, match=r"lacks epochs, .*: it is of another version"):
        write_report(run, lambda _: None)


def test_a_stage_that_was_found_finished_has_no_speed(run):
    """A resumed chain finds its shards finished, in no time at all."""
    (run / "results.json").write_text(json.dumps({"seconds": {"shard": 0.0}}))
    text = _text(run)
    assert "sharding, per input" not in text
    assert "Throughput" in text
