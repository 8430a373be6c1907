import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.multiprocess]


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A real head with a dashboard, as `ray start --head` makes it; yields the jobs' address."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    # A folder of its own, short: Ray puts sockets there, whose paths may have 107 bytes.
    folder = Path(f"/tmp/ray-{os.getpid()}")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"),
            f"--dashboard-agent-listen-port={agent}",
            *("--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"),
        ],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if "Ray runtime started" in line:
            break
    assert process.poll() is None, "the head did not start"
    yield f"http://127.0.0.1:{dashboard}"
    process.terminate()
    process.communicate(timeout=60)
    shutil.rmtree(folder)


def submit(address, out, shards, *overrides):
    few = ["order.global_batch=64", "train.epochs=1", "train.max_minutes=null", "transfer=null"]
    return subprocess.run(
        [
            *(sys.executable, "-m", "cluster.cli", "submit", "configs/demo/pretrain.yaml"),
            *(f"out={out}", f"data.manifest={shards}", *few, *overrides),
            *("--address", address),
        ],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_submitted_run_trains_follows_its_logs_and_ends_with_its_code(head, shards, tmp_path):
    done = submit(head, tmp_path / "out", shards)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pretrain: 3 steps" in done.stdout
    assert "SUCCEEDED" in done.stdout
    assert json.loads((tmp_path / "out" / "pretrain.json").read_text())["steps"] == 3


def test_a_submitted_run_that_is_refused_ends_with_exit_code_2(head, tmp_path):
    done = submit(head, tmp_path / "out", tmp_path / "nowhere")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "tessera shard SRC" in done.stdout
    assert "FAILED" in done.stdout
