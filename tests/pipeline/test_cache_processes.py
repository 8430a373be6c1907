import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.config import ConfigError
from pipeline.remote.cache import ShardCache

SCRIPT = Path(__file__).with_name("get_shard.py")

pytestmark = pytest.mark.multiprocess


def start(folder, wanted, then):
    """Begin to get a file in another process."""
    command = [sys.executable, SCRIPT, folder, wanted.url, str(wanted.num_bytes), wanted.sha256]
    return subprocess.Popen(
        [*command, then],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_ask_for_one_file_share_its_transfer(cache_config, put, server, wait_for):
    wanted = put("a", 500_000, "wait")
    others = [start(cache_config.folder, wanted, "leave") for _ in range(4)]
    wait_for(lambda: server.requests)
    time.sleep(0.3)
    server.gate.set()
    outputs = [other.communicate(timeout=60) for other in others]
    assert all(out.startswith("got 500000 ") for out, _ in outputs), outputs
    assert sorted(out.split()[2] for out, _ in outputs) == ["0", "0", "0", "1"]  # Misses.
    assert len(server.requests) == 1


def test_a_killed_downloader_blocks_nobody_and_leaves_nothing(
    cache_config, put, server, get, wait_for
):
    wanted = put("a", 500_000, "drip:0.02")
    other = start(cache_config.folder, wanted, "leave")
    wait_for(lambda: server.requests)
    time.sleep(0.2)
    assert list(cache_config.folder.glob("*.partial"))
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with ShardCache(cache_config) as cache:
        assert [path.name for path in cache_config.folder.iterdir()] == ["room.lock"]
        get(cache, wanted)
        assert cache.stats().misses == 1


def test_a_waiting_process_takes_over_from_a_killed_one(cache_config, put, server, get, wait_for):
    wanted = put("a", 500_000, "drip:0.02")
    other = start(cache_config.folder, wanted, "leave")
    wait_for(lambda: server.requests)
    with ShardCache(cache_config) as cache:
        threading.Timer(0.3, other.kill).start()
        get(cache, wanted)
    other.communicate()
    assert len(server.requests) == 2


def test_pins_of_a_killed_process_are_gone(cache_config, put, get):
    wanted, large = put("a", 1_200_000), put("b", 1_500_000)
    other = start(cache_config.folder, wanted, "hold")
    assert other.stdout.readline().startswith("got")
    with ShardCache(cache_config) as cache:
        with pytest.raises(ConfigError, match="beside 1 files in use"):
            get(cache, large)
        other.kill()
        other.communicate()
        get(cache, large)


def test_an_interrupt_does_not_hang_on_downloads(cache_config, put, server, wait_for):
    wanted = put("a", 1000, "wait")
    other = start(cache_config.folder, wanted, "prefetch")
    wait_for(lambda: server.requests)
    begun = time.monotonic()
    _, errors = other.communicate("\n", timeout=60)
    assert time.monotonic() - begun < 20  # The server answers after 30 s.
    assert "KeyboardInterrupt" in errors
    assert "Exception ignored" not in errors


def test_ctrl_c_while_waiting_for_a_file_leaves_nothing(cache_config, put, server, wait_for):
    other = start(cache_config.folder, put("a", 1000, "wait"), "leave")
    wait_for(lambda: server.requests)
    begun = time.monotonic()
    other.send_signal(signal.SIGINT)
    _, errors = other.communicate(timeout=60)
    assert time.monotonic() - begun < 20  # The server answers after 30 s.
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert [path.name for path in cache_config.folder.iterdir()] == ["room.lock"]
