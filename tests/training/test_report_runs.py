import dataclasses
import json
import shutil
from typing import get_args

import pytest
import yaml
from finished_run import JIGSAW, ROTATION, finish_run, shards_with_losses
from page import Page

from pipeline.config import ConfigError
from training.report.page import write_report
from training.report.results import JOBS, read_results
from training.report.scores import differences, scores_of
from training.transfer.config import Job

KNN = [{"name": "knn", "neighbours": [1, 5]}]


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """Two runs on the same images: one with two jobs, one with one of them."""
    root = tmp_path_factory.mktemp("runs")
    told = shards_with_losses(shards, root / "shards")
    jobs = [*KNN, {"name": "svm", "map_side": 2, "costs": [0.01]}]
    return [
        finish_run(root / "first", told, JIGSAW, jobs).out,
        finish_run(root / "second", told, ROTATION, KNN).out,
    ]


@pytest.fixture
def copies(runs, tmp_path):
    return [shutil.copytree(run, tmp_path / run.name) for run in runs]


def _page(runs, **options):
    return Page(write_report(runs, lambda _: None, **options).read_text(encoding="utf-8"))


def _scores(runs, **styles):
    results = {run.name: read_results(run) for run in runs}
    return scores_of(results, styles or {name: n for n, name in enumerate(results, 2)})


def test_the_page_lies_in_the_folder_of_all_runs_and_names_them(copies, tmp_path):
    path = write_report(copies, lambda _: None)
    assert path == tmp_path / "report.html"
    text = Page(path.read_text(encoding="utf-8")).text
    assert "first and second" in text
    assert "All runs read them." in text
    assert text.count("Ledger of the sharding") == 1
    pictures = {file.relative_to(tmp_path).as_posix() for file in tmp_path.glob("report/*/*")}
    assert {"report/1-first/puzzle-0.png", "report/2-second/filters-pretrained.png"} <= pictures
    assert sum(name.endswith("samples.png") for name in pictures) == 1


def test_a_run_and_a_transfer_alone_stand_side_by_side(copies):
    for name in ("config.yaml", "pretrain.json", "metrics.jsonl", "trunk.safetensors"):
        (copies[1] / name).unlink()
    page = _page(copies)
    assert "first and second" in page.text
    assert page.text.count("Training has changed them by") == 1
    assert "the pretraining has not run" not in page.text


def test_a_random_trunk_that_scored_the_same_is_one_line(copies):
    scores = _scores(copies)
    (knn,) = [row for row in scores.rows if row.label == "knn, k = 1"]
    assert set(knn.best) >= {"first", "second"}
    # The first run's random trunk has also done the job svm.
    assert set(scores.series) == {"first", "second", "first: random", "second: random"}
    (copies[0] / "transfer" / "svm.json").unlink()
    (copies[0] / "transfer.json").unlink()
    assert dict(_scores(copies).series) == {"random": 0, "first": 2, "second": 3}


def test_styles_of_a_run_are_those_of_its_curves(copies):
    page = _page(copies)
    scores = _scores(copies)
    assert [scores.series[name] for name in ("first", "second")] == [2, 3]
    assert {style % 5 for name, style in scores.series.items() if "random" in name} == {0}
    legends = page.source.split('<ul class="legend">')[1:]
    (curves, *others) = (part.split("</ul>")[0] for part in legends)
    drawn = {line.split("<bdi>")[1].split("</bdi>")[0]: line for line in curves.split("<li>")[1:]}
    assert set(drawn) == {"first", "second"}
    assert all(line in other for other in others for line in drawn.values())


def test_what_is_not_alike_is_said_in_one_line(copies):
    assert "Compare with care, these runs differ: no svm of second." in _page(copies).text
    results = {run.name: read_results(run) for run in copies}
    assert differences(results) == ["no svm of second"]
    path = copies[1] / "transfer" / "knn.json"
    raw = json.loads(path.read_text())
    raw["images"]["test"] = "others"
    raw["config"]["temperature"] = 0.2
    raw["view_px"] = 64
    path.write_text(json.dumps(raw))
    config = yaml.safe_load((copies[1] / "config.yaml").read_text())
    config["config"]["trunk"] = {"name": "resnet18"}
    (copies[1] / "config.yaml").write_text(yaml.safe_dump(config))
    results["second"] = read_results(copies[1])
    assert differences(results) == [
        "the architectures differ",
        "knn differs in images, view_px, temperature",
        "no svm of second",
    ]


def test_other_images_of_the_pretraining_are_told(copies):
    first, second = (read_results(run) for run in copies)
    manifest = second.manifest.model_copy(update={"classes": ("a", "b", "c", "d")})
    for other in (manifest, "nobody can read it"):
        runs = {"first": first, "second": dataclasses.replace(second, manifest=other)}
        assert differences(runs)[0] == "the images of the pretraining differ"


def test_runs_that_are_alike_say_so(copies):
    twin = shutil.copytree(copies[1], copies[1].with_name("twin"))
    text = _page([copies[1], twin]).text
    assert "All runs saw the same images under the same protocol." in text


def test_runs_of_one_name_are_told_apart_by_their_paths(copies, tmp_path):
    other = shutil.copytree(copies[0], tmp_path / "other" / "first")
    reserved = copies[1].rename(tmp_path / "random")
    out = tmp_path / "page.html"
    page = _page([copies[0], other, reserved], out=out)
    for run in (copies[0], other, reserved):
        assert f"{run}: " in page.text
    assert f"--out {out}" in page.text


@pytest.mark.parametrize("name", ["missing/page.html", "page.txt", "first"])
def test_a_page_without_a_place_is_one_line(copies, tmp_path, name):
    with pytest.raises(ConfigError, match=r"^out \(=.*\) must be a file in a folder that exists"):
        write_report(copies, lambda _: None, out=tmp_path / name)


def test_runs_in_different_folders_need_a_place(copies, tmp_path):
    other = shutil.copytree(copies[0], tmp_path / "other" / "run")
    with pytest.raises(ConfigError, match=r"^runs \(=.*\) lie in different folders; say where"):
        write_report([copies[0], other], lambda _: None)
    assert not list(tmp_path.glob("**/report.html"))


def test_a_run_is_given_once(copies):
    with pytest.raises(ConfigError, match=r"^run \(=.*first\) is given twice"):
        write_report([copies[0], copies[0] / ".." / "first"], lambda _: None)


def test_a_job_that_is_damaged_is_one_line(copies):
    (copies[0] / "transfer" / "knn.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"knn\.json \(=.*\) lacks job, protocol, .*version"):
        write_report(copies, lambda _: None)


def test_every_job_of_a_transfer_has_its_place():
    names = [get_args(kind.model_fields["name"].annotation)[0] for kind in get_args(Job)]
    assert sorted(JOBS) == sorted(names)
