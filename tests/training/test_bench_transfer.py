import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command import refused, tessera
from labelled_stripes import CLASSES, multi_label, striped_task, stripes
from rich.console import Console

from pipeline.bench.contest import Effort, Steps
from pipeline.bench.worker import answers
from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from training.bench import classifiers
from training.bench.classifiers import measure_svms
from training.bench.extraction import (
    POOLINGS,
    SVM,
    ExtractionWork,
    Pictures,
    bound,
    contend,
    first_classes,
    keep_features,
    write_files,
)
from training.bench.transfer import (
    QUICK,
    Budget,
    TransferBench,
    bench_transfer,
    last_line,
    make_options,
    svm_table,
)
from training.transfer.frozen.features import layer_rows
from training.transfer.frozen.svm import LayerFeatures, scaled, score_layer

ROOT = Path(__file__).parents[2]
BLINK = Budget(
    extraction=Effort(rounds=2, warm=0.0, seconds=0.05),
    svm_rounds=1,
    probe_rounds=1,
    epochs=1,
    train_per_class=9,
    test_per_class=4,
    num_classes=None,
    batch=8,
    view_px=32,
)
LAYERS = [
    f"{s}.{p}" for s in ("conv1", *(f"layer{n}" for n in range(1, 5))) for p in ("gap", "map")
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twenty images of each of three classes."""
    folder = tmp_path_factory.mktemp("bench") / "labelled"
    for label, kind in enumerate(CLASSES):
        (folder / kind).mkdir(parents=True)
        for number in range(20):
            (folder / kind / f"{number}.png").write_bytes(stripes(kind, 1000 * label + number))
    return folder


@pytest.fixture(scope="module")
def result(tree):
    """What the command writes of very little, and what it shows."""
    options = TransferBench(data=tree, trunk="small", budget=BLINK, cores=1)
    shown, steps = [], []
    found = bench_transfer(options, lambda *now: steps.append(now), shown.append)
    return found, shown, steps


@pytest.fixture
def work(make_shards, tmp_path):
    """A function (trunk) that makes the work on 24 and 12 images, with its loose files."""
    task = striped_task(make_shards, tmp_path, per_class=15, test_per_class=5)
    assert len(task.classes) == 3

    def make(trunk):
        made = ExtractionWork(
            shards=str(tmp_path / "shards"),
            folder=str(tmp_path / "scratch"),
            trunk=trunk,
            view_px=32,
            batch=8,
            cores=1,
            train_per_class=8,
            test_per_class=4,
            num_classes=None,
        )
        write_files(made.setting().task, tmp_path / "scratch" / "files")
        return made

    return make


@pytest.mark.multiprocess
def test_the_result_has_what_a_reader_of_the_numbers_must_know(result):
    found, shown, steps = result
    assert json.loads(json.dumps(found)) == found
    assert found["images"]["train"] <= 27
    assert found["images"]["test"] <= 12
    assert (found["classes"], found["svm_layers"], found["trunk"]) == (3, 10, "small")
    assert [row["layer"] for row in found["svm"]["layers"]] == LAYERS
    for row in found["svm"]["layers"]:
        assert all(0 <= row[k] <= 100 for k in ("svm_score", "sklearn_score", "svm_on_theirs"))
    assert {"hardware", "versions", "date", "commit", "command", "load", "cores"} <= set(found)
    assert "scikit-learn" in found["versions"]
    assert shown[-1].startswith("extraction runs at ")
    done, total, _ = steps[-1]
    assert done == total == len({step[0] for step in steps}) - 1


@pytest.mark.multiprocess
def test_ratios_are_those_of_the_rounds_side_by_side(result):
    found, _, _ = result
    rows = {row["name"]: row for row in found["extraction"]["rows"]}
    assert list(rows) == ["tessera", "loader", "forward", "torchvision"]
    for row in rows.values():
        assert len(row["rounds"]) == 2
        assert 0 < row["min"] <= row["images_per_s"] <= row["max"]
        assert row["images_per_cpu_s"] > 0
    least = min(("loader", "forward"), key=lambda name: rows[name]["images_per_s"])
    assert found["bound_by"] == least

    def ratio(name):
        pairs = zip(rows["tessera"]["rounds"], rows[name]["rounds"], strict=True)
        return np.median([ours / theirs for ours, theirs in pairs])

    assert found["ratio_to_bound"] == pytest.approx(ratio(least))
    assert found["ratio_to_torchvision"] == pytest.approx(ratio("torchvision"))
    for name in ("loader", "forward"):
        assert found[f"{name}_images_per_s"] == rows[name]["images_per_s"]
    layers = found["svm"]["layers"]
    assert found["sklearn_seconds"] == pytest.approx(sum(row["sklearn_seconds"] for row in layers))
    on_theirs = sum(row["svm_on_theirs_seconds"] for row in layers)
    assert found["svm_ratio"] == pytest.approx(found["sklearn_seconds"] / on_theirs)
    seconds = found["probe_all_seconds"] / found["probe_last_seconds"]
    assert found["probe_ratio"] == pytest.approx(seconds)
    for name in ("svm_seconds", "svm_cpu_seconds", "svm_cpu_ratio", "probe_cpu_ratio"):
        assert found[name] > 0
    for name in ("svm_score", "sklearn_score", "svm_on_theirs"):
        scores = [row[name] for row in found["svm"]["layers"]]
        assert found[name] == pytest.approx(np.mean(scores))


def test_what_both_can_on_the_same_cores_is_one_after_the_other():
    speeds = {"tessera": [75, 80], "loader": [300, 300], "forward": [100, 100]}
    rows = [
        {
            "name": name,
            "images_per_s": np.mean(rates),
            "images_per_cpu_s": rates[0],
            "rounds": rates,
        }
        for name, rates in (speeds | {"torchvision": [50, 40]}).items()
    ]
    found = bound(rows)
    assert (found["bound_by"], found["ratio_to_bound"]) == ("forward", pytest.approx(0.775))
    assert found["shared_cores_images_per_s"] == pytest.approx(75)
    assert found["ratio_to_shared_cores"] == pytest.approx(0.775 * 100 / 75)
    assert found["ratio_to_torchvision"] == pytest.approx(1.75)
    assert found["ratio_to_bound_per_cpu_s"] == pytest.approx(0.75)
    assert found["ratio_to_torchvision_per_cpu_s"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("bound_by", "words"),
    [
        ("forward", "extraction runs at 0.97 of the forward pass, which bounds it"),
        ("loader", "extraction runs at 0.97 of the loader, which bounds it"),
    ],
)
def test_the_last_line_says_which_binds(bound_by, words):
    numbers = {"ratio_to_bound": 0.97, "ratio_to_shared_cores": 1, "ratio_to_torchvision": 2}
    line = last_line({**numbers, "bound_by": bound_by, "svm_ratio": 9, "probe_ratio": 1.2})
    assert line.startswith(words)
    assert "the probe of all layers costs 1.20x that of the last" in line


@pytest.mark.multiprocess
@pytest.mark.parametrize("trunk", ["small", "resnet18"])
def test_the_loop_gives_what_ours_gives_of_the_same_views(work, trunk):
    given = work(trunk)
    files, out = Path(given.folder) / "files", Path(given.folder) / "loop"
    keep_features(given, files, out)
    for side, num in (("train", 24), ("test", 12)):
        pictures = Pictures(files / side, given.view_px)
        assert len(pictures) == num
        views = torch.stack([pictures[row] for row in range(num)])
        for stem, rows in layer_rows(given.net(), views, POOLINGS, "fp32").items():
            loop = np.load(out / f"{side}.{stem.replace('map2', 'map')}.npy")
            assert loop == pytest.approx(rows, abs=1e-3)


@pytest.mark.multiprocess
def test_both_solvers_agree_on_the_same_features(work, tmp_path):
    given = work("small")
    out = tmp_path / "loop"
    keep_features(given, Path(given.folder) / "files", out)
    setting = given.setting()
    said = []
    step = Steps(lambda done, total, what: said.append(what), 0)
    found = measure_svms(setting, given.named_trunk(), out, 1, step)
    layers = [row["layer"] for row in found["layers"]]
    assert said[4:] == [f"SVMs of scikit-learn: {name}" for name in layers]
    for row in found["layers"]:
        train, test = (np.load(out / f"{side}.{row['layer']}.npy") for side in ("train", "test"))
        rows = scaled(train, test, setting.device, multi_label=False)
        sides = LayerFeatures(*rows, setting.task.train.targets, setting.task.test.targets)
        assert row["svm_on_theirs"] == score_layer(sides, SVM).score
        assert row["sklearn_score"] == pytest.approx(row["svm_on_theirs"], abs=17)  # Two of 12.
    assert found["sklearn_score"] == pytest.approx(found["svm_on_theirs"], abs=5)


@pytest.mark.multiprocess
def test_layers_that_scikit_learn_does_not_reach_in_time_are_excluded(work, tmp_path, monkeypatch):
    monkeypatch.setattr(classifiers, "_PATIENCE_S", 0.0)
    given = work("small")
    keep_features(given, Path(given.folder) / "files", tmp_path / "loop")
    setting, trunk = given.setting(), given.named_trunk()
    found = measure_svms(setting, trunk, tmp_path / "loop", 1, Steps(lambda *_: None, 0))
    first, *others = found["layers"]
    assert (found["svm_layers"], found["sklearn_layers"]) == (10, 1)
    assert all(row["sklearn_score"] is None and row["svm_score"] >= 0 for row in others)
    assert found["sklearn_score"] == first["sklearn_score"]
    assert found["svm_ratio"] == pytest.approx(
        first["sklearn_seconds"] / first["svm_on_theirs_seconds"]
    )
    sink = io.StringIO()
    Console(file=sink, width=100).print(svm_table(found))
    assert "mean of the first 1" in sink.getvalue()


def test_a_failure_of_a_contender_is_its_answer(tmp_path, work):
    given = dataclasses.replace(work("small"), folder=str(tmp_path / "nothing"))
    command = json.dumps({"warm": 0, "seconds": 0.01})
    work = dataclasses.asdict(given)
    _, answer = answers(lambda: contend("torchvision", **work), [command])
    assert answer["failure"].startswith("failed: FileNotFoundError: ")


def test_classes_are_numbered_anew(make_shards, tmp_path):
    task = striped_task(make_shards, tmp_path, per_class=6, test_per_class=3)
    found = first_classes(task, 2)
    assert found.classes == CLASSES[:2]
    assert np.bincount(found.train.targets).tolist() == [6, 6]
    assert np.bincount(found.test.targets).tolist() == [3, 3]
    with pytest.raises(ConfigError, match="one class an image"):
        first_classes(multi_label(task), 2)


def test_quick_is_less_of_the_same(tmp_path):
    options = make_options(tmp_path, quick=True, trunk="small")
    assert options.budget == QUICK
    assert make_options(tmp_path, quick=False, trunk="small").budget.num_classes is None
    with pytest.raises(ConfigError, match=r"trunk \(=vgg\) is not known here; give resnet18"):
        make_options(tmp_path, quick=True, trunk="vgg")


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({}, "is not there"),
        ({"lying": 20}, "1 folders of classes"),
        ({"lying": 2, "standing": 2}, "0 of 2 classes"),  # Too few for three folds.
        (None, "0 folders of classes"),  # Images that lie in no folder of a class.
    ],
)
def test_images_that_teach_nothing_are_refused(tree, tmp_path, kept, words):
    data = tmp_path / "data"
    if kept is None:
        shutil.copytree(tree / "lying", data)
    for name, num in (kept or {}).items():
        (data / name).mkdir(parents=True)
        for path in sorted((tree / name).iterdir())[:num]:
            shutil.copy(path, data / name)
    options = TransferBench(data=data, trunk="small", budget=BLINK, cores=1)
    with pytest.raises(ConfigError, match=words):
        bench_transfer(options, lambda *_: None, lambda shown: None)


def test_shards_without_labels_are_refused(make_shards, tmp_path):
    (tmp_path / "crawl").mkdir()
    for number in range(4):
        (tmp_path / "crawl" / f"{number}.png").write_bytes(stripes("lying", number))
    make_shards(tmp_path / "crawl", tmp_path / "shards", ShardConfig())
    options = TransferBench(data=tmp_path / "shards", trunk="small", budget=BLINK, cores=1)
    with pytest.raises(ConfigError, match="has 0 classes, a transfer needs at least 2"):
        bench_transfer(options, lambda *_: None, lambda shown: None)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    data = tmp_path / "nowhere"
    assert refused(tessera("bench", "transfer", "--quick", "--data", data), "nowhere")
