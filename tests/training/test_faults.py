"""Real processes: NaN on one rank, signals, kills, a full disk."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from training.checkpoint import load_newest
from training.metrics import read_metrics

SCRIPT = Path(__file__).with_name("faulty_run.py")
pytestmark = pytest.mark.multiprocess


def start(shards, out, num_ranks, *faults):
    """Run every rank to its end; return exit codes and what they wrote to standard error."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(shards), str(out), *faults]
    ranks = []
    for rank in range(num_ranks):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if num_ranks > 1:
            env |= {"RANK": str(rank), "WORLD_SIZE": str(num_ranks), "LOCAL_RANK": str(rank)}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env))
    texts = [rank.communicate(timeout=240)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], texts


@pytest.fixture(scope="module")
def plain(shards, tmp_path_factory):
    """Undisturbed runs of 1 and 2 ranks."""
    folder = tmp_path_factory.mktemp("plain")
    for num_ranks in (1, 2):
        assert start(shards, folder / str(num_ranks), num_ranks)[0] == [0] * num_ranks
    return folder


def weights(out):
    return safetensors.torch.load_file(out / "trunk.safetensors")


def assert_same_end(out, plain):
    """Bit for bit: the trunk, the model, the optimizer and every loss."""
    assert_equal(weights(out), weights(plain))
    ours, theirs = load_newest(out / "checkpoints"), load_newest(plain / "checkpoints")
    assert_equal(ours.model, theirs.model)
    assert ours.optimizer["param_groups"] == theirs.optimizer["param_groups"]
    for number, state in theirs.optimizer["state"].items():
        assert_equal(ours.optimizer["state"][number], state)
    losses = [(r.step, r.loss, r.lr) for r in read_metrics(out)]
    assert losses == [(r.step, r.loss, r.lr) for r in read_metrics(plain)]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def ledger(out):
    """The samples of each step, by the last start that did it, over its ranks."""
    by_step = {}
    files = sorted(out.glob("ids-*.jsonl"), key=lambda path: path.stat().st_mtime)
    for world in dict.fromkeys(path.name.split("-")[1] for path in files):
        found = {}
        for path in out.glob(f"ids-{world}-*.jsonl"):
            for step, ids in map(json.loads, path.read_text().splitlines()):
                found.setdefault(step, []).extend(ids)
        whole = {step: sorted(ids) for step, ids in found.items() if len(ids) == 12}
        by_step |= whole
    return by_step


@pytest.mark.parametrize("fault", ["nan_at", "grad_nan_at"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_step_without_a_finite_gradient_on_one_rank_changes_nothing_on_any(
    plain, shards, tmp_path, num_ranks, fault
):
    faults = (f"{fault}=15", f"rank={num_ranks - 1}")
    codes, texts = start(shards, tmp_path / "out", num_ranks, *faults)
    assert codes == [0] * num_ranks
    out = tmp_path / "out"
    assert "step 16 is skipped" in texts[0]
    (line,) = map(json.loads, (out / "bad_steps.jsonl").read_text().splitlines())
    steps = ledger(out)
    assert sorted(one for part in line["sample_ids"] for one in part) == steps[15]
    assert steps == ledger(plain / str(num_ranks))
    assert line["ranks_with_bad_loss"] == ([num_ranks - 1] if fault == "nan_at" else [])
    # The last step was skipped: weights, momenta and statistics are those after the step before.
    undone, _ = start(shards, tmp_path / "short", num_ranks, "signal_at=14", "signal=SIGTERM")
    assert undone == [75] * num_ranks
    ours, before = (load_newest(tmp_path / name / "checkpoints") for name in ("out", "short"))
    assert (ours.step, before.step) == (16, 15)
    assert_equal(ours.model, before.model)
    for number, state in before.optimizer["state"].items():
        assert_equal(ours.optimizer["state"][number], state)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_run_that_diverges_goes_back_and_ends_in_one_line(shards, tmp_path, num_ranks):
    out = tmp_path / "out"
    bad = ("nan_at=9,10,11,12,13,14,15", f"rank={num_ranks - 1}", "train.max_rollbacks=1")
    codes, texts = start(shards, out, num_ranks, *bad)
    assert codes == [1] * num_ranks
    for text in texts:
        last = text.splitlines()[-1]
        assert last.startswith("tessera: step 12: no finite loss and gradient for 3 steps")
        assert "Traceback" not in text
    assert "back from step 12 to 8, with 0.5 times the learning rate" in texts[0]
    assert not (out / "trunk.safetensors").exists()
    newest = load_newest(out / "checkpoints")
    assert newest.step == 8
    assert all(value.isfinite().all() for value in newest.model.values())


def test_a_run_without_a_checkpoint_goes_back_to_its_start(plain, shards, tmp_path):
    out = tmp_path / "out"
    keys = ("train.max_bad_steps=1", "train.rollback_lr_scale=1", "train.max_rollbacks=1")
    once = start(shards, out, 1, "nan_once=2", *keys)
    assert once[0] == [0]
    assert_equal(weights(out), weights(plain / "1"))


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_bit_for_bit(
    plain, shards, tmp_path, number
):
    out = tmp_path / "out"
    codes, texts = start(shards, out, 2, "signal_at=6", f"signal={number}", "rank=1")
    assert codes == [75, 75]
    for text in texts:
        assert text.splitlines()[-1] == (
            "tessera: stopped after step 7; the same command with --resume continues."
        )
        assert "Traceback" not in text
    assert load_newest(out / "checkpoints").step == 7
    assert start(shards, out, 2)[0] == [0, 0]
    assert_same_end(out, plain / "2")


def test_a_plain_process_stops_and_goes_on_bit_for_bit(plain, shards, tmp_path):
    out = tmp_path / "out"
    (out / "checkpoints/.step-00000004.4242.partial").mkdir(parents=True)
    assert start(shards, out, 1, "signal_at=6", "signal=SIGTERM")[0] == [75]
    assert start(shards, out, 1)[0] == [0]
    assert_same_end(out, plain / "1")
    assert not list(out.rglob("*.partial"))


def test_a_run_of_2_then_3_then_1_ranks_by_kills_has_the_ledger_of_the_plain_run(
    plain, shards, tmp_path
):
    out = tmp_path / "out"
    assert -9 in start(shards, out, 2, "kill_at=6")[0]
    assert -9 in start(shards, out, 3, "kill_at=10")[0]
    assert start(shards, out, 1)[0] == [0]
    assert ledger(out) == ledger(plain / "1")
    assert sorted(ledger(out)) == list(range(16))


def test_a_full_disk_during_a_save_costs_no_step(plain, shards, tmp_path):
    out = tmp_path / "out"
    codes, texts = start(shards, out, 1, "full_at=4,12")
    assert codes == [0]
    assert texts[0].count("no checkpoint of step") == 2
    assert "training goes on, and tries again in 4 steps" in texts[0]
    assert_same_end(out, plain / "1")
    assert not list(out.rglob("*.partial"))


def test_a_full_disk_at_the_very_end_is_one_line(shards, tmp_path):
    out = tmp_path / "out"
    codes, texts = start(shards, out, 2, "full_at=16", "full_export=1")
    assert codes == [2, 0]
    assert "Traceback" not in texts[0]
    assert "No space left on device; free some space" in texts[0].splitlines()[-1]
    assert not (out / "trunk.safetensors").exists()
