import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray_nodes import ENVIRONMENT, started_head

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def head():
    with started_head(num_cpus=2) as started:
        yield started.dashboard


def submit(address, out, shards, *overrides):
    few = ["order.global_batch=64", "train.epochs=1", "train.max_minutes=null", "transfer=null"]
    return subprocess.run(
        [
            *(sys.executable, "-m", "cluster.cli", "submit", "configs/demo/pretrain.yaml"),
            *(f"out={out}", f"data.manifest={shards}", *few, *overrides),
            *("--address", address),
        ],
        cwd=ROOT,
        env=ENVIRONMENT,
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
