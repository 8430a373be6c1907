import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import hostile_judges
import numpy as np
import pytest
from made_images import (
    JPEG,
    PNG,
    gif_that_declares,
    jpeg_of_many_scans,
    photo,
    png_with_bomb_in_text,
)

from pipeline.bench.machine import memory_mib
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.judge import judge
from pipeline.ingest.gate.sandbox import Sandbox, decode_verdict, encode_verdict

CONFIG = ShardConfig(near_duplicates=False, max_seconds=5)
MIB = 2**20
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(CONFIG) as one:
        yield one


@pytest.fixture(scope="module")
def hostile():
    config = ShardConfig(near_duplicates=False, max_seconds=0.5, max_memory_mb=300)
    with Sandbox(config, hostile_judges.judge) as one:
        yield one


def ask(sandbox, data):
    (judged,) = sandbox.examine([data])
    return judged


def peak_mib(pid):
    return memory_mib(pid, "VmHWM")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ends(pid):
    """Whether a process is gone within some seconds."""
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_the_verdict_is_that_of_the_function(sandbox):
    assert ask(sandbox, JPEG) == judge(JPEG, CONFIG)
    assert ask(sandbox, b"") == judge(b"", CONFIG)


@pytest.mark.parametrize(("data", "is_sent_back"), [(b"input", True), (b"stored", False)])
def test_a_verdict_survives_the_way(data, is_sent_back):
    before = hostile_judges.ACCEPTED
    answer = encode_verdict(before, data)
    after = decode_verdict(answer, data)
    np.testing.assert_array_equal(after.near_words, before.near_words)
    assert (after.outcome, after.stored, after.notes) == ("accepted", b"stored", ())
    assert answer.count(b"stored") - answer.count(b'"stored_') == is_sent_back


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff" * 100,
        encode_verdict(hostile_judges.ACCEPTED, b"")[:-1],
        struct.pack("<4I", 2, 0, 0, 0) + b"[]",
        struct.pack("<4I", 12, 0, 0, 0) + b"[{}, [], {}]",
    ],
)
def test_what_is_no_verdict_is_refused(answer):
    with pytest.raises(ValueError, match="verdict"):
        decode_verdict(answer, b"input")


def test_more_than_the_limit_is_not_sent(hostile):
    config = ShardConfig(near_duplicates=False, max_bytes=10)
    with Sandbox(config) as one:
        assert ask(one, b"x" * 11).reason == "too_big"


def test_a_crash_costs_one_image(hostile):
    judged = ask(hostile, b"crash")
    assert (judged.outcome, judged.reason) == ("quarantined", "decoder_crash")
    assert len(judged.content_hash) == 32
    assert ask(hostile, b"well").outcome == "accepted"


def test_an_image_that_crashes_once_is_tried_again(hostile, tmp_path):
    judged = ask(hostile, b"once " + bytes(tmp_path / "crashed"))
    assert (tmp_path / "crashed").exists()
    assert judged.outcome == "accepted"


def test_a_hang_is_killed_at_the_limit(hostile):
    ask(hostile, b"well")
    pid, started = hostile.pid, time.monotonic()
    assert ask(hostile, b"sleep").reason == "timeout"
    assert 0.5 <= time.monotonic() - started < 15  # It would sleep for a minute.
    assert ends(pid)
    assert ask(hostile, b"well").outcome == "accepted"


@pytest.mark.parametrize(
    ("culprit", "reason"), [(b"crash", "decoder_crash"), (b"sleep", "timeout")]
)
@pytest.mark.parametrize("at", [0, 3, 7])
def test_one_of_many_that_ends_the_child_costs_no_other(hostile, culprit, reason, at):
    images = [b"long %d" % n for n in range(7)]
    images.insert(at, culprit)
    found = hostile.examine(images)
    assert [judged.reason for judged in found] == [None] * at + [reason] + [None] * (7 - at)
    del found[at]
    assert [len(judged.stored) for judged in found] == [*range(7)]


def test_many_that_crash_are_named_one_by_one(hostile, tmp_path):
    once = b"once " + bytes(tmp_path / "crashed")
    found = hostile.examine([b"crash", b"well", once, b"crash"])
    reasons = ["decoder_crash", None, None, "decoder_crash"]
    assert [judged.reason for judged in found] == reasons


def test_the_limit_on_time_is_that_of_one_image(hostile):
    ask(hostile, b"well")
    pid = hostile.pid
    found = hostile.examine([b"sleep 0.3"] * 4)
    assert [judged.reason for judged in found] == [None] * 4
    assert hostile.pid == pid


def test_a_child_that_only_says_it_goes_on_is_late():
    config = ShardConfig(near_duplicates=False, max_seconds=0.5)
    with Sandbox(config, hostile_judges.count_for_ever) as one:
        started = time.monotonic()
        assert [judged.reason for judged in one.examine([b"x", b"y"])] == ["timeout"] * 2
        assert time.monotonic() - started < 60  # Of which starting it twice takes most.


def test_many_are_judged_as_one_by_one(sandbox):
    config = CONFIG.model_copy(update={"max_bytes": 10 * MIB})
    images = [JPEG, b"", b"x" * (10 * MIB + 1), JPEG + bytes(MIB), PNG, JPEG * 40, b"<html>"]
    with Sandbox(config) as one:
        assert one.examine(images) == [ask(one, data) for data in images]
        assert one.examine([]) == []


def test_what_a_codec_prints_is_no_answer(hostile):
    assert ask(hostile, b"print").stored == b"stored"
    assert ask(hostile, b"well").stored == b"stored"


@pytest.mark.parametrize("size", [100, MIB - 1000, MIB, 20 * MIB])
def test_data_of_any_size_goes_both_ways(hostile, size):
    assert ask(hostile, b"well " + bytes(size)).stored == b"stored"
    assert len(ask(hostile, b"long %d" % size).stored) == size
    found = hostile.examine([b"well " + bytes(size), b"long %d" % size] * 3)
    assert [len(judged.stored) for judged in found] == [6, size] * 3


def test_memory_has_a_limit(hostile):
    assert ask(hostile, b"eat %d" % (20 * MIB)).outcome == "accepted"
    assert ask(hostile, b"eat %d" % (400 * MIB)).reason == "decoder_crash"


def test_no_process_is_left_behind():
    one = Sandbox(CONFIG)
    ask(one, JPEG)
    pid = one.pid
    one.close()
    one.close()
    assert one.pid is None
    assert ends(pid)


def test_a_judge_that_cannot_be_imported_is_an_error(capfd):
    with (
        Sandbox(CONFIG, hostile_judges.no_judge) as one,
        pytest.raises(RuntimeError, match=r"did not start \(exit status 1\)"),
    ):
        ask(one, b"x")
    assert "no_such_module" in capfd.readouterr().err


PARENT = """
import sys, hostile_judges
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.sandbox import Sandbox
with Sandbox(ShardConfig(near_duplicates=False, max_seconds={seconds}), hostile_judges.judge) as e:
    e.examine([b"well"])
    print(e.pid, flush=True)
    e.examine([b"sleep"])
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        (signal.SIGINT, 30),
        (signal.SIGKILL, 1),  # Nobody is left to end the child: it does so by itself.
    ],
)
def test_the_child_ends_with_its_parent(number, seconds):
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT.format(seconds=seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    ) as parent:
        pid = int(parent.stdout.readline())
        time.sleep(0.1)
        os.killpg(parent.pid, number)  # As a terminal does.
        error = parent.communicate(timeout=30)[1].decode()
    assert ends(pid)
    assert error.count("Traceback") == (1 if number == signal.SIGINT else 0)  # The parent's own.


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: gif_that_declares(8250, 8250), "too_many_pixels"),
        (png_with_bomb_in_text, "metadata_too_big"),
        (lambda: jpeg_of_many_scans(10_000), "too_many_scans"),
    ],
)
def test_bombs_are_refused_without_memory_or_time(sandbox, make, reason):
    data = make()
    ask(sandbox, JPEG)
    before, started = peak_mib(sandbox.pid), time.monotonic()
    assert ask(sandbox, data).reason == reason
    assert time.monotonic() - started < 5
    assert peak_mib(sandbox.pid) - before < 64


def test_the_set_up_is_plain_data():
    assert ShardConfig(**json.loads(json.dumps(CONFIG.model_dump(mode="json")))) == CONFIG


COMPILES_NOTHING = """
import sys
from pathlib import Path
from numba.core.dispatcher import Dispatcher
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.sandbox_child import _load

config = ShardConfig()
judge = _load("pipeline.ingest.gate.judge:judge", config)
def refuse(dispatcher, signature):
    raise AssertionError(f"{dispatcher.py_func.__qualname__} is compiled for {signature}")
Dispatcher.compile = refuse
for path in sys.argv[1:]:
    assert judge(Path(path).read_bytes(), config).outcome == "accepted", path
"""


@pytest.mark.multiprocess
def test_nothing_is_compiled_while_the_clock_of_an_image_runs(tmp_path):
    paths = []
    for mode in ("RGB", "L"):
        for width in (80, 300, 1500):  # Looked at in full, by blocks, and reduced.
            for ending in ("png", "jpg"):
                path = tmp_path / f"{mode}-{width}.{ending}"
                photo(width, width * 3 // 4).convert(mode).save(path)
                paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", COMPILES_NOTHING, *paths],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
