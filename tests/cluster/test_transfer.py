import io
import json
import subprocess
import sys

import pytest
import ray
import torch
import yaml
from rich.console import Console

from cluster.screen import IncompleteError
from cluster.transfer import last_line, layer_table, require_all, run_transfer, transfer_table
from pipeline.config import ConfigError, parse
from training.models.trunks import TrunkConfig, build_trunk
from training.pretrain import export_trunk
from training.run import RunConfig
from training.transfer.evaluate import Outcome, transfer

SECTION = {
    "view_px": 32,
    "max_train": 60,
    "max_test": 24,
    "jobs": [{"name": "knn", "neighbours": [1, 5]}, {"name": "svm", "costs": [0.01]}],
}


def raw_of(out, shards, **section):
    torch.manual_seed(5)
    export_trunk(build_trunk(TrunkConfig(name="small")), out / "trunk.safetensors")
    return {
        "out": str(out),
        "seed": 0,
        "data": {"manifest": str(shards)},
        "trunk": {"name": "small"},
        "transfer": {**SECTION, **section},
    }


def shown(table):
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.ray
def test_jobs_under_ray_find_what_one_process_finds(local_ray, shards, tmp_path):
    scores = {}
    for name in ("ray", "plain"):
        (tmp_path / name).mkdir()
        config = parse(RunConfig, raw_of(tmp_path / name, shards), "config")
        found = run_transfer(config, Console(quiet=True), local=name == "plain")
        require_all(found)
        scores[name] = {
            (e["job"], e["trunk"], e["layer"], e["metric"]): e["score"] for e in found.entries
        }
    assert scores["ray"] == pytest.approx(scores["plain"], abs=1e-6)
    assert len(scores["ray"]) == 2 * (2 * 5 + 10)


@pytest.mark.ray
def test_a_failed_job_is_named_at_the_end_and_the_others_are_kept(local_ray, shards, tmp_path):
    jobs = [{"name": "knn", "neighbours": [500]}, {"name": "retrieval", "neighbours": 2}]
    config = parse(RunConfig, raw_of(tmp_path, shards, jobs=jobs), "config")
    found = run_transfer(config, Console(quiet=True), local=False)
    assert {entry["job"] for entry in found.entries} == {"retrieval"}
    with pytest.raises(ConfigError, match=r"knn on random \(knn.neighbours \(=\[500\]\)") as caught:
        require_all(found)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "transfer" / "retrieval.json").exists()


@pytest.mark.ray
def test_more_than_the_cluster_has_is_refused(local_ray, shards, tmp_path):
    config = parse(RunConfig, raw_of(tmp_path, shards, resources={"num_cpus": 999}), "config")
    with pytest.raises(ConfigError, match=r"transfer.resources.num_cpus \(=999\) exceeds"):
        run_transfer(config, Console(quiet=True), local=False)
    assert ray.is_initialized()


def test_the_command_writes_a_list_and_a_table_without_ray(shards, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_of(tmp_path, shards)))
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "cluster.cli",
            "transfer",
            path,
            "--local",
            "--json",
            tmp_path / "a.json",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    entries = json.loads((tmp_path / "a.json").read_text())
    assert {(entry["job"], entry["trunk"]) for entry in entries} == {
        (job, trunk) for job in ("knn", "svm") for trunk in ("random", "pretrained")
    }
    for words in ("knn k=1", "knn k=5", "svm", "layer4.map", "gain", "transfer: knn k=1: random"):
        assert words in result.stdout


def entry(trunk, layer, score, **details):
    spread = (score - 1, score + 1)
    return {
        "job": "svm",
        "trunk": trunk,
        "layer": layer,
        "metric": "accuracy, percent",
        "score": score,
        "scores": spread,
        "range": spread,
        "details": details,
    }


def test_a_table_shows_the_best_layer_of_each_trunk():
    entries = [entry("random", "a", 20.0), entry("random", "b", 30.0), entry("mine", "a", 41.0)]
    entries.append(entry("lost", "a", 50.0) | {"job": "knn"})
    rows = [line.strip("│┃").split("│") for line in shown(transfer_table(entries)).splitlines()]
    cells = [[cell.strip() for cell in row] for row in rows if len(row) == 5]
    assert cells == [
        ["svm", "random", "30.0", "29.0 to 31.0", "b"],
        ["", "mine", "41.0", "40.0 to 42.0", "a"],
        ["", "lost", "failed", "", ""],
        ["knn", "random", "failed", "", ""],
        ["", "mine", "failed", "", ""],
        ["", "lost", "50.0", "49.0 to 51.0", "a"],
    ]
    del entries[-1]
    assert last_line(entries) == "transfer: svm: random 30.0 % b, mine 41.0 % a (accuracy, percent)"
    assert last_line([]) == "transfer: no job was finished"


def test_a_table_of_layers_takes_any_trunks():
    summary = {
        "metric": "accuracy",
        "train_images": 3,
        "test_images": 2,
        "classes": 2,
        "layers": {"mine": {"a": {"score": 10.0}, "b": {"score": 12.5}}},
        "best_mine": 12.5,
    }
    text = shown(layer_table(summary | {"metric": "accuracy of a linear SVM, percent of images"}))
    assert "Transfer: accuracy of a linear SVM, percent of images\n3 training and 2 test" in text
    assert "12.5" in text
    assert "gain" not in text


@pytest.mark.parametrize(
    ("failures", "kind"),
    [
        ({"svm on a": ConfigError("x (=1) is odd.")}, ConfigError),
        ({"svm on a": ConfigError("x"), "knn on a": RuntimeError("many\nlines")}, IncompleteError),
    ],
)
def test_failures_are_one_line_of_the_right_kind(failures, kind):
    with pytest.raises(kind) as caught:
        require_all(Outcome([], None, failures))
    assert "\n" not in str(caught.value)
    assert all(name in str(caught.value) for name in failures)


def test_a_transfer_without_failures_passes(shards, tmp_path):
    jobs = [{"name": "knn", "neighbours": [1]}]
    config = parse(RunConfig, raw_of(tmp_path, shards, jobs=jobs), "config")
    found = transfer(config, torch.device("cpu"), lambda *now: None)
    require_all(found)
    assert len(found.entries) == 10
