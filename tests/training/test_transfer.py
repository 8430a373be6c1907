import csv
import json

import numpy as np
import pytest
import torch

from pipeline.config import ConfigError, parse
from training.models.trunks import TrunkConfig, build_trunk
from training.pretrain import export_trunk
from training.run import RunConfig, absolute
from training.transfer.config import TransferConfig
from training.transfer.evaluate import make_features, open_transfer, transfer
from training.transfer.frozen.features import (
    GAP,
    LARGE,
    Pooling,
    extract_features,
    frozen_features,
)

CPU = torch.device("cpu")
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
JOBS = (
    {"name": "svm", "costs": [0.001, 0.01]},
    {"name": "low_shot", "shots": [1, 4, 96], "draws": 2, "last_stages": 1},
    {"name": "knn", "neighbours": [1, 5, 1000]},
    {"name": "retrieval", "neighbours": 3, "queries": 4},
)


def quiet(what, done, total):
    """Discard progress."""


def trunk_of(name, seed=0, px=224):
    torch.manual_seed(seed)
    return build_trunk(TrunkConfig(name=name), use="transfer", view_px=px)


def run_of(out, shards, trunk="small", **section):
    plain = {"view_px": 32, "test_per_class": 12}
    raw = {
        "out": out,
        "seed": 0,
        "data": {"manifest": shards},
        "trunk": {"name": trunk},
        "transfer": {**plain, **section},
    }
    return parse(RunConfig, raw, "config")


@pytest.fixture
def run(tmp_path, shards):
    """A function (section) that makes a run with a pretrained trunk."""
    export_trunk(trunk_of("small", seed=99), tmp_path / "trunk.safetensors")
    return lambda **section: run_of(tmp_path, shards, **section)


def test_features_are_in_the_given_order_for_any_batch_size(run):
    rows = []
    for batch in (7, 64):
        opened = open_transfer(run(batch=batch), CPU)
        done = []
        images = opened.setting.task.test
        trunk = trunk_of("small", 99)
        found = extract_features(trunk, images, opened.setting, (GAP,), done.append)
        rows.append([batch["layer4.gap"] for batch in found])
        assert done[-1] == len(images.sample_ids) == 48
    assert len(rows[0]) == 7
    assert np.concatenate(rows[0]) == pytest.approx(np.concatenate(rows[1]), abs=1e-4)


def test_layers_are_averages_over_grid_cells(run):
    opened = open_transfer(run(view_px=64, max_train=40), CPU)
    poolings = (GAP, Pooling("map", 4), LARGE)
    frozen = frozen_features(opened.setting, opened.trunks[1], 0, poolings, quiet)
    assert set(frozen.layers) == {f"{s}.{p.name}" for s in STAGES for p in poolings}
    for stage, width in zip(STAGES, (32, 32, 64, 128, 256), strict=True):
        gap, _ = frozen.rows(f"{stage}.gap")
        for name, side in (("map", 4), ("large", round((9000 / width) ** 0.5))):
            cells = frozen.rows(f"{stage}.{name}")[0].reshape(len(gap), width, side * side)
            if name == "map":
                assert cells.mean(axis=2) == pytest.approx(gap, abs=1e-3)
            assert cells.std(axis=2).max() > 0.01


def test_features_are_extracted_once_unless_a_file_is_damaged(run):
    opened = open_transfer(run(max_train=40), CPU)
    progress = []

    def ask(poolings, trunk=1, seed=0):
        progress.clear()
        named = opened.trunks[trunk]
        found = frozen_features(
            opened.setting, named, seed, poolings, lambda *now: progress.append(now)
        )
        return found, bool(progress)

    first, made = ask((GAP, Pooling("map", 2)))
    assert made
    assert ask((GAP,)) == (ask((GAP,))[0], False)
    assert ask((GAP, LARGE))[1]  # Only what is missing.
    assert not ask((Pooling("map", 2), LARGE))[1]
    assert ask((GAP,), trunk=0)[1]
    assert not ask((GAP,), trunk=0)[1]
    assert ask((GAP,), trunk=0, seed=1)[1]  # Other weights.
    assert not ask((GAP,), trunk=1, seed=1)[1]  # The same weights.
    expected = first.rows("conv1.gap")[0]
    path = first.folder / "train.conv1.gap.npy"
    path.write_bytes(path.read_bytes()[:-4] + b"gone")
    again, made = ask((GAP,))
    assert made
    assert np.array_equal(again.rows("conv1.gap")[0], expected)


def test_the_svm_leaves_what_the_report_reads(run, tmp_path):
    seen = []
    config = run(test_share=0.3, jobs=[{"name": "svm", "map_side": 2, "costs": [0.001, 0.01]}])
    found = transfer(config, CPU, lambda *now: seen.append(now))
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert written == json.loads(json.dumps(found.summary))
    layers = {f"{stage}.{kind}" for stage in STAGES for kind in ("gap", "map")}
    for name in ("random", "pretrained"):
        assert set(written[name]) == layers
        assert all(0 <= value <= 100 for value in written[name].values())
        assert written[f"best_{name}"] == max(written[name].values())
        assert set(written["layers"][name]["conv1.gap"]) == {"score", "cost", "dimension"}
    assert list(written["layers"]) == ["random", "pretrained"]
    assert written["metric"] == "mean per-class accuracy of a linear SVM, percent"
    assert (written["classes"], written["chance"], written["test_images"]) == (4, 25, 48)
    assert written["random"] != written["pretrained"]
    # Discs and bars of random colours: even a random trunk's filters beat chance.
    assert written["best_random"] > 30
    ends = {what: (done, total) for what, done, total in seen}
    images = written["train_images"] + written["test_images"]
    assert ends["random: features"] == ends["pretrained: features"] == (images, images)
    assert ends["pretrained: SVMs"] == (10, 10)


def test_every_job_on_every_trunk_is_recorded_and_run_once(run, tmp_path):
    config = run(jobs=JOBS, seeds=[0, 1])
    found = transfer(config, CPU, quiet)
    assert not found.failures
    keys = {"job", "trunk", "layer", "metric", "score", "scores", "range", "train_images"}
    keys |= {"test_images", "overlap", "seconds", "details"}
    for entry in found.entries:
        assert set(entry) == keys
        assert 0 <= entry["range"][0] <= entry["score"] <= entry["range"][1] <= 100
        assert entry["overlap"]["pretrain/test"] == 48
    counts = {(e["job"], e["trunk"], len(e["scores"])) for e in found.entries}
    assert counts == {
        *(("svm", "random", 2), ("svm", "pretrained", 1)),
        *(("low_shot", "random", 4), ("low_shot", "pretrained", 2)),
        *(("knn", "random", 2), ("knn", "pretrained", 1)),
        *(("retrieval", "random", 2), ("retrieval", "pretrained", 1)),
    }
    low = [e for e in found.entries if e["job"] == "low_shot"]
    assert {e["details"]["shots"] for e in low} == {1, 4}
    assert low[0]["details"]["shots_left_out"] == [96]
    for job in JOBS:
        record = json.loads((tmp_path / "transfer" / f"{job['name']}.json").read_text())
        assert record["protocol"]
        assert record["config"]["name"] == job["name"]
        assert record["results"] == [e for e in found.entries if e["job"] == job["name"]]
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found.entries)
    assert (tmp_path / "transfer" / "retrieval.png").stat().st_size > 1000

    progress = []
    again = transfer(config, CPU, lambda *now: progress.append(now))
    assert again.entries == found.entries
    assert not progress
    export_trunk(trunk_of("small", seed=100), tmp_path / "trunk.safetensors")
    other = transfer(config, CPU, lambda *now: progress.append(now))
    assert {what.split(":")[0] for what, _, _ in progress} == {"pretrained"}
    pairs = zip(other.entries, found.entries, strict=True)
    assert all((a == b) == (a["trunk"] == "random") for a, b in pairs)


def test_a_failed_job_does_not_stop_the_others(run, tmp_path):
    jobs = [{"name": "knn", "neighbours": [10_000]}, {"name": "retrieval", "neighbours": 2}]
    found = transfer(run(jobs=jobs, trunks=["pretrained"]), CPU, quiet)
    assert list(found.failures) == ["knn on pretrained"]
    assert isinstance(found.failures["knn on pretrained"], ConfigError)
    assert {entry["job"] for entry in found.entries} == {"retrieval"}
    assert found.summary is None
    assert not (tmp_path / "transfer.json").exists()


@pytest.mark.parametrize(("steps", "is_told"), [((7, 5), True), ((5, 5), False)])
def test_trainings_of_different_lengths_are_noted(run, tmp_path, steps, is_told):
    config = run(jobs=[{"name": "knn", "neighbours": [1]}])
    transfer(config, CPU, quiet)
    parts = sorted((tmp_path / "transfer" / "parts").glob("knn-*.json"))
    assert len(parts) == 2
    for part, number in zip(parts, steps, strict=True):
        raw = json.loads(part.read_text())
        raw["scores"][0]["details"]["steps"] = [number]
        part.write_text(json.dumps(raw))
    reported = transfer(config, CPU, quiet).notes
    kept = json.loads((tmp_path / "transfer" / "knn.json").read_text())["notes"]
    for notes in (reported, kept):
        assert any("knn: max_minutes ended" in note for note in notes) == is_told
    if is_told:
        assert "after 5 to 7 steps" in reported[-1]


def test_all_frozen_jobs_of_a_trunk_share_one_extraction(run):
    opened = open_transfer(run(jobs=JOBS), CPU)
    made = []
    make_features(opened, "pretrained", lambda *now: made.append(now))
    images = len(opened.setting.task.train.sample_ids) + 48
    assert made[-1] == ("pretrained: features", images, images)
    assert [done for _, done, _ in made] == sorted(done for _, done, _ in made)
    made.clear()
    found = transfer(run(jobs=JOBS, trunks=["pretrained"]), CPU, lambda *now: made.append(now))
    assert len({entry["job"] for entry in found.entries}) == 4
    assert not [now for now in made if "features" in now[0]]


@pytest.mark.parametrize(
    ("section", "law"),
    [
        ({"jobs": [{"name": "svm"}, {"name": "svm"}]}, "must be of different kinds"),
        ({"jobs": [{"name": "svn"}]}, "svm"),
        ({"jobs": [{"name": "knn", "k": 3}]}, "k is no known key"),
        ({"trunks": ["random", "random"]}, "must differ"),
        ({"trunks": ["mine"]}, "another name with weights"),
    ],
)
def test_invalid_sections_are_refused_in_one_line(tmp_path, shards, section, law):
    with pytest.raises(ConfigError, match=law) as caught:
        run_of(tmp_path, shards, **section)
    assert "\n" not in str(caught.value)


def test_a_section_survives_a_round_trip(tmp_path, shards):
    section = {"jobs": JOBS, "trunks": ["random", {"name": "mine", "weights": "a.pth"}]}
    config = run_of(tmp_path, shards, **section).transfer
    assert parse(TransferConfig, config.model_dump(mode="json"), "again") == config
    moved = absolute(run_of(tmp_path, shards, **section, supervised="runs/a")).transfer
    assert moved.supervised.is_absolute()
    assert moved.trunks[1].weights.is_absolute()


def test_a_transfer_without_its_section_is_refused(shards, tmp_path):
    raw = {"out": tmp_path, "seed": 0, "data": {"manifest": shards}, "trunk": {"name": "small"}}
    with pytest.raises(ConfigError, match=r"^transfer is missing"):
        transfer(parse(RunConfig, raw, "config"), CPU, quiet)
    assert not list(tmp_path.iterdir())
