import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.config import ConfigError, parse
from pipeline.shards.manifest import Ledger, read_manifest, write_manifest
from training.pretrain import train
from training.report import write_report
from training.run import RunConfig, open_run, pretraining_of
from training.transfer.evaluate import transfer

HOSTILE = "<script>alert(1)</script>.jpg"
QUARANTINED = {"truncated": 3, "not_image": 2}
FILTERED = {"min_side": 4}
PRETEXTS = {
    "context": {"name": "context", "patch_px": 16, "gap_px": 4, "jitter_px": 1}
    | {"min_pixels": 2000, "max_pixels": 4000},
    "rotation": {"name": "rotation", "crop_px": 48, "mirror_probability": 1.0},
}
PRETEXTS["multitask"] = {
    "name": "multitask",
    "tasks": [{"name": "jigsaw", "crop_px": 48, "tile_px": 12}, *PRETEXTS.values()],
    "weights": [1, 1, 2],
}
VOID = {"meta", "img", "br", "hr", "link", "input"}


@pytest.fixture(scope="module")
def finished(shards, tmp_path_factory):
    """A run of one epoch with its transfer; its shards tell of inputs left out."""
    root = tmp_path_factory.mktemp("report")
    folder = shutil.copytree(shards, root / "shards")
    manifest = read_manifest(folder)
    ledger = Ledger(
        inputs=manifest.num_samples + 15,
        accepted=manifest.num_samples,
        quarantined=QUARANTINED,
        filtered=FILTERED,
        duplicate=6,
    )
    write_manifest(folder, manifest.model_copy(update={"ledger": ledger, "sources": {}}))
    rows = [
        {"path": f"crawl/{HOSTILE}", "verdict": "quarantined", "reason": "truncated"},
        {"path": "crawl/half \ud83d.jpg", "verdict": "filtered", "reason": "min_side"},
        {"path": "crawl/a.jpg", "verdict": "duplicate", "winner": "crawl/b & c.jpg"},
        *({"path": f"{n}.jpg", "verdict": "quarantined", "reason": "empty"} for n in range(40)),
    ]
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse(
        RunConfig,
        {
            "out": str(root / "run"),
            "seed": 1,
            "data": {"manifest": str(folder)},
            "trunk": {"name": "small"},
            "order": {"global_batch": 64, "num_lanes": 4, "window": 16},
            "pretext": {"name": "jigsaw", "grid": 2, "crop_px": 64, "tile_px": 24}
            | {
                "channel_shift_px": 1,
                "num_permutations": 24,
                "gray_probability": 0.5,
                "puzzles_per_image": 2,
            },
            "optim": {"name": "sgd", "lr": 0.01},
            "train": {"epochs": 1, "log_every": 1},
            "transfer": {"view_px": 48, "test_share": 0.4, "map_side": 2, "costs": [0.01]},
        },
        "test",
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # So small a job waits for its threads longer than it works.
    open_run(config, resume=False)
    train(pretraining_of(config))
    transfer(config, torch.device("cpu"), lambda *_: None)
    torch.set_num_threads(threads)
    return config


@pytest.fixture(scope="module")
def page(finished):
    return Page(write_report(finished.out, lambda _: None).read_text(encoding="utf-8"))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that a test may take pieces from."""
    return shutil.copytree(finished.out, tmp_path / "run")


class Page(HTMLParser):
    """Elements, table rows and text of a page; fails where tags do not balance."""

    def __init__(self, source):
        super().__init__()
        self.source, self.elements, self.rows, self.words = source, [], [], []
        self.open = []
        self.feed(source)
        self.close()
        assert self.open == []

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data.strip()

    def of(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


def _text(folder):
    return Page(write_report(folder, lambda _: None).read_text(encoding="utf-8")).text


def test_the_page_loads_nothing(page):
    assert not page.of("script", "link", "iframe", "object", "embed", "base")
    targets = [a[key] for _, a in page.elements for key in ("src", "href", "srcset") if key in a]
    assert targets
    assert all(target.startswith(("data:image/", "#")) for target in targets)
    assert "url(" not in page.source
    assert "@import" not in page.source
    policies = [a["content"] for a in page.of("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_every_reason_stands_with_its_count(page):
    for reason, count in {**QUARANTINED, **FILTERED}.items():
        assert any(row[:2] == [reason, str(count)] for row in page.rows)
    assert "213 inputs = 198 accepted + 5 quarantined + 4 filtered + 6 duplicate:" in page.text


def test_every_layer_stands_with_its_scores(page, finished):
    found = json.loads((finished.out / "transfer.json").read_text())
    assert len(found["random"]) >= 5
    for layer, random in found["random"].items():
        (row,) = [row for row in page.rows if row[0] == layer]
        pretrained = found["pretrained"][layer]
        assert row[2].removesuffix("(best)") == f"{random:.1f}"
        assert row[3].removesuffix("(best)") == f"{pretrained:.1f}"
        assert row[4].replace("\N{MINUS SIGN}", "-") == f"{pretrained - random:+.1f}"
        assert row[3].endswith("(best)") == (pretrained == found["best_pretrained"])


def test_names_are_shown_and_never_run(page):
    assert HOSTILE not in page.source
    assert f"crawl/{HOSTILE}" in page.text
    assert "duplicate of crawl/b & c.jpg" in page.text
    assert ["16.jpg", "quarantined: empty"] in page.rows
    assert ["17.jpg", "quarantined: empty"] not in page.rows  # The first 20 in all.


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
    (run / "transfer.json").unlink()
    page = Page(write_report(run, lambda _: None).read_text(encoding="utf-8"))
    section = page.text.split("2. What the network sees")[1].split("3. Curves")[0]
    for word in words:
        assert word in section
    for word in not_words:
        assert word not in section.lower()


def test_a_run_without_transfer_says_so(run):
    (run / "transfer.json").unlink()
    assert "The transfer has not run: there is no transfer.json" in _text(run)


def test_a_skipped_transfer_says_why(run):
    (run / "transfer.json").unlink()
    skipped = {"transfer": {"skipped": "2 classes & more are needed."}}
    (run / "results.json").write_text(json.dumps(skipped))
    assert "The transfer was skipped: 2 classes & more are needed." in _text(run)


def test_the_commands_and_times_of_a_chain_are_shown(run):
    chain = {"seconds": {"shard": 21.3, "transfer": 700}, "commands": ["tessera shard 'a <b>'"]}
    (run / "results.json").write_text(json.dumps(chain))
    text = _text(run)
    assert "tessera shard 'a <b>'" in text
    assert "11 min 40 s" in text
    assert "sharding, per input 10" in text


def test_an_unfinished_run_says_so(run):
    for name in ("pretrain.json", "trunk.safetensors", "transfer.json"):
        (run / name).unlink()
    text = _text(run)
    assert "The pretraining has not finished: there is no pretrain.json. The last record" in text
    assert "There is no trunk.safetensors yet" in text
    assert "No stage has left its time yet." in text
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
    assert "Scores per layer" in text


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
