import json
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from command import refused, tessera
from PIL import Image

from pipeline.bench.contest import last_line
from pipeline.bench.inputs import Numbers, complaint, make_inputs, stored_sizes
from pipeline.bench.plan_growth import measure_plan
from pipeline.bench.shard import (
    CONTESTS,
    PHRASES,
    ShardBench,
    bench_shard,
    headline,
    make_options,
)
from pipeline.bench.shard_measures import measure_growth
from pipeline.bench.shard_peers import Name, contend, open_maker
from pipeline.bench.worker import answers
from pipeline.config import ConfigError
from pipeline.ingest.parts import close_sandbox

ROOT = Path(__file__).parents[2]
EXCLUDED = {"tessera", "tessera_444", "tessera_shards", "webdataset"}  # Of quick runs.
NUMBERS = Numbers(small=6, large=4, png=5)
NAMES = set(get_args(Name)) - {"decode_only"}  # Which stores nothing.


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Seven images of 64 x 48 px or upright, no two alike; one is taken by none."""
    folder = tmp_path_factory.mktemp("bench") / "images"
    folder.mkdir()
    for number in range(7):
        cells = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        pixels = cells.repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels if number % 2 else pixels.swapaxes(0, 1)).save(
            folder / f"{number}.jpg"
        )
    return folder


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """The same images as stored, enlarged, and as PNGs."""
    return make_inputs(data, tmp_path_factory.mktemp("inputs"), NUMBERS)


@pytest.fixture(scope="module")
def result(data):
    """What the command writes, of contests of a single round, and what it shows."""
    options = ShardBench(
        data=data, numbers=NUMBERS, rounds=1, everyone=False, growth=(), plan=(), cores=2
    )
    shown = []
    return {**bench_shard(options, lambda *_: None, shown.append), "shown": shown}


def answers_of(name, commands):
    return answers(lambda: contend(name, core=None), commands)


def command(files, out):
    out.mkdir()
    return json.dumps({"files": str(files), "out": str(out)})


def test_inputs_are_large_small_and_png(folders):
    assert {kind: len(list(folder.iterdir())) for kind, folder in folders.items()} == {
        "large": 4,
        "small": 6,
        "png": 5,
    }
    assert set(stored_sizes(folders["large"])) == {(683, 512), (512, 683)}
    assert set(stored_sizes(folders["small"])) == {(64, 48), (48, 64)}
    assert set(stored_sizes(folders["png"])) == {(64, 48), (48, 64)}


@pytest.mark.parametrize(
    ("name", "kind"),
    sorted(
        {(name, contest.files) for contest in CONTESTS for name in contest.runners if name in NAMES}
    ),
)
def test_every_contender_stores_all_images_at_the_size_asked(folders, tmp_path, name, kind):
    if name == "img2dataset":
        pytest.importorskip("cv2")
    try:
        maker = open_maker(name, folders[kind])
        maker.make(tmp_path)
    finally:
        close_sandbox()
    wanted = stored_sizes(folders[kind])
    assert maker.images == len(wanted)
    assert complaint(tmp_path, wanted) is None


def test_an_answer_says_what_was_done_in_which_time(folders, tmp_path):
    files = folders["small"]
    told = list(
        answers_of("tessera_near", [command(files, tmp_path / str(row)) for row in range(2)])
    )
    assert [answer["images"] for answer in told[1:]] == [6, 6]
    assert all(answer["cpu_seconds"] > 0 for answer in told[1:])


def test_what_is_missing_or_of_another_size_is_no_win(folders, tmp_path):
    open_maker("webdataset", folders["small"]).make(tmp_path)
    wanted = stored_sizes(folders["small"])
    assert complaint(tmp_path, [*wanted, (64, 48)]) == "failed: it wrote 6 of 7 images"
    larger = [(width + 2, height) for width, height in wanted]
    assert "px instead of" in complaint(tmp_path, larger)
    assert complaint(tmp_path, [(width + 1, height) for width, height in wanted]) is None
    tar = next(tmp_path.glob("*.tar"))
    whole = tar.read_bytes()
    scan = whole.index(b"\xff\xda")
    tar.write_bytes(whole[: scan + 20] + b"\xff\xd9" + bytes(40) + whole[scan + 62 :])
    assert "does not decode" in complaint(tmp_path, wanted)


def test_a_contender_that_is_not_installed_is_named(folders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    _, answer = answers_of("img2dataset", [command(folders["small"], tmp_path / "out")])
    assert answer["failure"].startswith("not installed: ")
    assert "cv2" in answer["failure"]
    assert "[bench]" in answer["failure"]


def test_a_failure_of_a_contender_is_its_row(folders, tmp_path):
    _, answer = answers_of("copy", [command(folders["png"], tmp_path / "out")])
    assert answer["failure"].startswith("failed: ValueError: ")


@pytest.mark.multiprocess
def test_the_result_says_what_a_reader_of_the_numbers_must_know(result):
    shown = result.pop("shown")
    assert json.loads(json.dumps(result)) == result
    for contest in CONTESTS:
        measured = result[contest.name]
        num = {"large": 4, "small": 6, "png": 5}[contest.files]
        assert measured["files"] == num
        names = {row["name"] for row in measured["rows"]}
        assert names == set(contest.runners) - EXCLUDED
        for row in measured["rows"]:
            ran(row, num, contest.times)
    assert result["ratio_passthrough_to_decode_only"] > 0
    assert result["load"] >= 0
    assert {"cpu", "cores"} <= set(result["hardware"])
    assert {"date", "commit", "command", "versions"} <= set(result)
    assert shown[-1].startswith("ours ")
    assert "of the strict decode only" in shown[-1]
    result["shown"] = shown


def ran(row, num, rounds):
    if row["name"] == "img2dataset" and row["images_per_s"] is None:
        assert row["failure"].startswith("not installed: ")
        return
    workers = 2 if row["name"] in ("two_workers", "two_decoders") else 1
    if workers == 2 and row["images_per_s"] is None:
        assert row["failure"] == "failed: two workers need two cores"
        return
    assert row["failure"] is None
    assert row["images"] == num * workers
    assert len(row["rounds"]) == rounds
    assert 0 < row["min"] <= row["images_per_s"] <= row["max"]
    assert row["images_per_cpu_s"] > 0


@pytest.mark.multiprocess
def test_the_headline_is_in_the_tables(result):
    rows = {row["name"]: row for row in result["reencode"]["rows"]}
    assert result["ratio_to_img2dataset"] == rows["tessera_near"]["ratio"]
    assert result["img2dataset"] in ("img2dataset", "OpenCV stand-in", None)
    assert result["ratio_to_img2dataset_per_cpu_s"] == rows["tessera_near"]["ratio_per_cpu_s"]
    passed = {row["name"]: row for row in result["passthrough"]["rows"]}
    assert passed["decode_only"]["ratio"] == 1
    pairs = zip(passed["tessera_near"]["rounds"], passed["decode_only"]["rounds"], strict=True)
    ratio = np.median([ours / theirs for ours, theirs in pairs])
    assert result["ratio_passthrough_to_decode_only"] == pytest.approx(ratio)
    two = {row["name"]: row for row in result["scaling"]["rows"]}["two_workers"]
    assert result["ratio_two_workers"] == two["ratio"]


def test_without_peers_and_a_second_core_the_rest_is_still_said():
    def row(name, value):
        return {"name": name, "ratio": value, "ratio_per_cpu_s": value, "variant": ""}

    contests = {
        contest.name: {"rows": [row(runner, None) for runner in contest.runners]}
        for contest in CONTESTS
    }
    assert last_line(headline(contests), PHRASES) == "ours did not run; see the tables"
    contests["passthrough"]["rows"][0] = row("tessera_near", 0.5)
    assert (
        last_line(headline(contests), PHRASES)
        == "ours 0.50 (0.50 per CPU s) of the strict decode only"
    )


@pytest.mark.multiprocess
def test_growth_has_a_line_for_every_number(tmp_path):
    found = measure_growth((10,), tmp_path, 1, lambda *_: None)  # The last is a copy.
    assert list(found) == ["10"]
    assert found["10"]["seconds_per_input"] > 0
    assert found["10"]["start_seconds"] > 0
    assert 10 < found["10"]["driver_own_mib"] < found["10"]["driver_peak_mib"] < 10_000


@pytest.mark.multiprocess
def test_plans_of_synthetic_inputs_find_what_was_planted(tmp_path):
    found = measure_plan((500, 1000), tmp_path, lambda *_: None)
    assert list(found) == ["500", "1000"]
    for measured in found.values():
        assert measured["near_found"] == 1
        assert 10 < measured["own_mib"] < measured["peak_mib"] < 10_000


def test_variants_of_ours_and_the_weaker_peer_are_left_to_the_full_run(tmp_path):
    def runners(quick):
        options = make_options(tmp_path, quick=quick, growth=None, plan=None)
        return {runner for contest in options.contests for runner in contest.runners}

    assert runners(False) - runners(True) == EXCLUDED


def test_growth_is_measured_in_tenfold_steps(tmp_path):
    def steps(quick, growth):
        return make_options(tmp_path, quick=quick, growth=growth, plan=None).growth

    assert steps(False, None) == (1_000, 10_000, 100_000)
    assert steps(False, 1_000_000) == (1_000, 10_000, 100_000, 1_000_000)
    assert steps(True, None) == ()
    assert steps(True, 1_000) == (1_000,)
    with pytest.raises(ConfigError, match=r"growth \(=999\) must be at least 1000"):
        steps(False, 999)
    assert make_options(tmp_path, quick=True, growth=None, plan=10_000).plan == (1_000, 10_000)
    with pytest.raises(ConfigError, match=r"plan \(=9\) must be at least 1000"):
        make_options(tmp_path, quick=True, growth=None, plan=9)


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    data = tmp_path / "nowhere"
    assert refused(tessera("bench", "shard", "--quick", "--data", data), "nowhere")
