import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crawls import contents, encoded

from pipeline.shards.writer import ShardReport, read_report

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("killed_sharding.py")
NUM_IMAGES = 48

pytestmark = pytest.mark.multiprocess


@pytest.fixture
def crawl(tmp_path):
    folder = tmp_path / "crawl"
    for seed in range(NUM_IMAGES):
        path = folder / f"class{seed % 2}" / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed, "PNG" if seed % 3 == 0 else "JPEG"))
    (folder / "again.jpg").write_bytes(encoded(1))
    (folder / "cut.jpg").write_bytes(encoded(1)[:500])
    return folder


class Sharding:
    """The script, as a process."""

    def __init__(self, crawl, out):
        self._process = subprocess.Popen(
            [sys.executable, SCRIPT, str(crawl), str(out)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, seconds=None):
        """Shard, killed after `seconds`; returns the status of the process."""
        self._process.stdin.write("\n" if seconds is None else f"{seconds}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def check_what_is_there(out):
    """A shard with a report is whole, whenever its maker was killed."""
    for report in out.glob("shard-*.json"):
        assert read_report(report, ShardReport) is not None, report.name


@pytest.mark.parametrize(
    "num_kills", [20, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_killed_at_any_instant_it_goes_on_to_the_same_bytes(crawl, tmp_path, num_kills):
    rng = random.Random(num_kills)
    out = tmp_path / "out"
    with Sharding(crawl, out) as sharding:
        started = time.monotonic()
        assert sharding.run() == 0
        seconds = time.monotonic() - started
        expected = contents(out)
        killed = unfinished = 0
        while killed < num_kills:
            if sharding.run(rng.uniform(0, seconds / 2)) == signal.SIGKILL:
                killed += 1
            else:
                seconds *= 0.9  # The first run was slower than this one, which ended before.
            if out.exists():
                check_what_is_there(out)
            if (out / "manifest.json").exists():
                assert contents(out) == expected
                shutil.rmtree(out)
            else:
                unfinished += 1
        assert unfinished >= num_kills // 4  # Else the kills came too late to tear anything.
        assert sharding.run() == 0
    assert contents(out) == expected
    assert not [path.name for path in out.iterdir() if path.name in (".parts", ".lock")]
