import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from command import refused, tessera
from rich.console import Console

from pipeline.bench.contest import Effort, Standing, busy_note, contest_table
from pipeline.bench.contest import last_line as say
from pipeline.bench.inputs import prepare
from pipeline.bench.loader import (
    PHRASES,
    BenchOptions,
    bench_loader,
    headline,
    make_options,
    rows_of,
)
from pipeline.bench.loader_measures import contest, exclude_strangers, images_of
from pipeline.bench.loader_peers import CONTENDERS, TorchvisionCut, contend, quick_names
from pipeline.bench.work import LoaderWork, check_batch, graph_options
from pipeline.bench.worker import Stretch, answers
from pipeline.config import ConfigError
from pipeline.shards.store import Store

ROOT = Path(__file__).parents[2]
BATCH = 16
BLINK = Effort(rounds=2, seconds=0.05, warm=0.0, choose=0.02)
# torchvision says in every call that its decoder moves to another package.
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


def work_of(folder, view="tiles"):
    return LoaderWork(shards=folder / "shards", scratch=folder, view=view, batch=BATCH, cores=1)


def answers_of(name, work, commands):
    return answers(lambda: contend(name, **dataclasses.asdict(work)), commands)


def last_line(top):
    return say(top, *PHRASES)


@pytest.fixture(scope="module")
def prepared(shards, tmp_path_factory):
    """A folder with `shards` and `files` of 48 images of the session's 198."""
    folder = tmp_path_factory.mktemp("bench")
    prepare(shards, folder, most=48, least=BATCH, cores=1)
    return folder


@pytest.fixture(scope="module")
def result(shards):
    """What the command writes with --quick, of a contest in the blink of an eye."""
    options = BenchOptions(
        data=shards,
        quick=True,
        only=None,
        cores=1,
        device="cpu",
        effort=BLINK,
        most=48,
        batch=BATCH,
    )
    shown = []
    found = bench_loader(options, lambda *_: None, shown.append)
    return {**found, "shown": shown}


def test_files_and_shards_hold_the_same_bytes(prepared):
    store = Store(prepared / "shards")
    payloads = store.read(np.arange(48)).payloads
    assert [payload.tobytes() for payload in payloads] == images_of(prepared / "files")
    assert len(store.manifest.shards) >= 4  # Peers hand out whole shards.


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.parametrize("view", ["tiles", "whole"])
def test_every_installed_contender_runs_all_rounds(prepared, view):
    entrants = [(contender, work_of(prepared, view)) for contender in CONTENDERS]
    rows = rows_of(contest(entrants, BLINK, lambda *_: None))
    assert {row["name"] for row in rows} == {contender.name for contender in CONTENDERS}
    for row in rows:
        ran_all_rounds(row)


def ran_all_rounds(row):
    if row["name"] in ("spdl", "litdata", "streaming") and row["images_per_s"] is None:
        assert row["failure"].startswith("not installed: No module named ")
        return
    assert row["failure"] is None
    assert len(row["rounds"]) == BLINK.rounds
    assert 0 < row["min"] <= row["images_per_s"] <= row["max"]
    assert row["images_per_cpu_s"] > 0
    assert row["setting"]


@pytest.mark.multiprocess
def test_the_result_says_what_a_reader_of_the_number_must_know(result):
    shown = result.pop("shown")
    assert json.loads(json.dumps(result)) == result
    rows = {row["title"]: row for row in result["tiles"]["rows"]}
    assert {row["name"] for row in rows.values()} == set(quick_names())
    for row in rows.values():
        ran_all_rounds(row)
    assert result["images_per_s"] == rows["Tessera"]["images_per_s"]
    assert result["fastest_peer"] in rows
    assert rows[result["fastest_peer"]]["role"] == "peer"
    assert result["ratio_to_fastest_peer"] > 0
    assert result["ratio_to_decode_only"] > 0
    assert (result["images"], result["batch"], result["cores"]) == (48, BATCH, 1)
    assert {"cpu", "cores"} <= set(result["hardware"])
    assert {"torch", "nvidia-dali-cuda130"} <= set(result["versions"])
    assert {"date", "commit", "command"} <= set(result)
    assert shown[-1].startswith("ours ")
    assert f"x the fastest peer ({result['fastest_peer']})" in shown[-1]
    result["shown"] = shown


@pytest.mark.parametrize("name", ["tessera", "dali", "decode_only", "read_only"])
@pytest.mark.parametrize("view", ["tiles", "whole"])
def test_contenders_without_processes_of_their_own_give_the_agreed_view(prepared, name, view):
    ready, chosen = answers_of(name, work_of(prepared, view), [json.dumps({"seconds": 0.01})])
    assert ready == {}
    assert "failure" not in chosen
    if name in ("tessera", "dali"):
        assert 64 < chosen["mean"] < 192


@pytest.mark.parametrize("view", ["tiles", "whole"])
def test_the_torch_peers_share_one_transform_of_the_agreed_view(prepared, view):
    batch = TorchvisionCut(view)(images_of(prepared / "files")[:BATCH])
    assert 64 < check_batch(batch.numpy(), work_of(prepared, view)) < 192


def test_the_whole_view_of_a_peer_shows_what_ours_shows(prepared):
    work = work_of(prepared, "whole")
    from pipeline.loading.crops import whole_batches

    ids = np.arange(BATCH)
    (ours,) = whole_batches(Store(work.shards), ids, graph_options(BATCH, 1), px=224)
    theirs = TorchvisionCut("whole")(images_of(prepared / "files")[:BATCH])
    assert (ours.views.int() - theirs.int()).abs().float().mean() < 1


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((BATCH, 9, 64, 64, 3), np.float32), "float32"),
        (np.zeros((BATCH, 9, 64, 32, 3), np.uint8), r"\(16, 9, 64, 32, 3\)"),
        (np.zeros((BATCH - 1, 9, 64, 64, 3), np.uint8), r"\(15, 9, 64, 64, 3\)"),
        (np.full((BATCH, 9, 64, 64, 3), 128, np.uint8), "one colour"),
    ],
)
def test_a_contender_that_does_less_is_refused(tmp_path, batch, words):
    with pytest.raises(ValueError, match=words):
        check_batch(batch, work_of(tmp_path))


def test_channels_may_come_first(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, 9, 3, 64, 64), dtype=np.uint8)
    assert check_batch(noise, work_of(tmp_path)) == pytest.approx(127.5, abs=1)


def standing(name, rates, **changes):
    contender = next(one for one in CONTENDERS if one.name == name)
    rounds = [Stretch(images=rate, seconds=1, cpu_seconds=2) for rate in rates]
    return Standing(name, contender.title, role=contender.role, rounds=rounds, **changes)


def test_ratios_compare_the_rounds_side_by_side():
    rows = rows_of(
        [
            standing("tessera", [150, 300, 600]),
            standing("webdataset", [100, 150, 500]),  # Median 150; ours is 1.5, 2 and 1.2 of it.
            standing("files", [140, 140, 140]),
            standing("spdl", [], failure="not installed: No module named 'spdl'"),
            standing("decode_only", [200, 400, 500]),
            standing("read_only", [9000, 9000, 9000]),  # A limit is no peer.
        ]
    )
    top = headline(rows)
    assert (top["images_per_s"], top["images_per_cpu_s"]) == (300, 150)
    assert top["fastest_peer"] == "webdataset + torchvision"
    assert top["ratio_to_fastest_peer"] == pytest.approx(1.5)
    assert top["ratio_to_decode_only"] == pytest.approx(0.75)
    line = "ours 1.50x the fastest peer (webdataset + torchvision), 0.75 of decode only"
    assert last_line(top) == line
    missing = rows[3]
    assert missing["images_per_s"] is missing["ratio_to_fastest_peer"] is None
    console = Console(file=io.StringIO(), width=200)
    console.print(contest_table("title", rows, {}))
    assert "SPDL + torch: not installed: No module named 'spdl'" in console.file.getvalue()


@pytest.mark.parametrize(("used", "warns"), [(1.1, True), (1.9, False), (None, False)])
def test_a_busy_machine_is_told(used, warns):
    note = busy_note(used, cores=2)
    assert (note is not None) == warns
    assert not warns or "1.1 of 2 cores" in note


def test_without_any_peer_the_last_line_still_says_the_speed():
    assert last_line(headline(rows_of([standing("tessera", [120])]))) == "ours 120 images/s"


def test_a_peer_that_is_not_installed_is_named_with_the_reason(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    (answer,) = answers_of("litdata", work_of(prepared), [])
    assert answer["failure"].startswith("not installed: ")
    assert "litdata" in answer["failure"]


def test_other_pictures_are_no_win():
    standings = [standing(name, [1]) for name in ("tessera", "webdataset", "files", "dali")]
    for one, mean in zip(standings, (110, 114, 108, 20), strict=True):
        one.mean = mean
    exclude_strangers(standings)
    assert [one.failure is None for one in standings] == [True, True, True, False]
    assert "mean of 20" in standings[3].failure


def options_of(data, **changes):
    given = {"quick": True, "only": None, "cores": None, "device": "cpu", **changes}
    return make_options(data, **given)


def test_quick_measures_tiles_of_few_contenders_only(tmp_path):
    assert options_of(tmp_path).parts == ("tiles",)
    assert "cuda" not in options_of(tmp_path, quick=False).parts
    assert "cuda" in options_of(tmp_path, quick=False, device="cuda").parts
    assert options_of(tmp_path, only="restore").parts == ("restore",)
    assert {"tessera", "decode_only"} < set(quick_names())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"only": "speed"}, r"only \(=speed\) names no measure; give one of tiles, whole"),
        ({"device": "tpu"}, r"device \(=tpu\) is not known"),
        ({"cores": 4096}, r"cores \(=4096\) exceeds"),
    ],
)
def test_options_nobody_knows_are_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        options_of(tmp_path, **changes)


def test_a_folder_that_is_not_there_or_empty_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, words in (("nowhere", "cannot be read"), ("empty", "have no matching file")):
        with pytest.raises(ConfigError, match=words):
            prepare(tmp_path / name, tmp_path / "out", most=64, least=64, cores=1)


def test_too_few_images_are_refused(shards, tmp_path):
    with pytest.raises(ConfigError, match="holds 48 usable images, fewer than the 64 of a batch"):
        prepare(shards, tmp_path, most=48, least=64, cores=1)


@pytest.mark.multiprocess
def test_a_folder_without_images_is_one_line(tmp_path):
    data = tmp_path / "images"
    data.mkdir()
    (data / "page.jpg").write_text("<html>404</html>")
    result = tessera("bench", "loader", "--data", data, "--quick")
    assert refused(result, "0 usable of 1 images: 1 not_image")
