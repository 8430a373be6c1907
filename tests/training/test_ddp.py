import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("gradient_of_ranks.py")


@pytest.fixture(scope="module")
def saved(shards, tmp_path_factory):
    """Output of the script, in this process and in two ranks."""
    out = tmp_path_factory.mktemp("gradients")
    runpy.run_path(str(SCRIPT))["main"](shards, out)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [sys.executable, *torchrun, SCRIPT, shards, out],
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    return {path.stem: torch.load(path, weights_only=True) for path in out.iterdir()}


@pytest.mark.multiprocess
def test_two_ranks_with_unequal_batches_have_the_gradient_of_one(saved):
    alone, first, second = saved["0_of_1"], saved["0_of_2"], saved["1_of_2"]
    assert (alone["images"], first["images"], second["images"]) == (12, 8, 4)
    assert torch.equal(first["weight"], second["weight"])
    assert torch.equal(first["gradient"], second["gradient"])
    assert alone["gradient"].abs().max() > 0.01
    for name in ("gradient", "weight"):  # The loss itself is in fp32.
        assert torch.allclose(first[name], alone[name], rtol=1e-5, atol=1e-7)


@pytest.mark.multiprocess
def test_ranks_add_up_and_see_what_the_others_have(saved):
    for name in ("0_of_2", "1_of_2"):
        assert saved[name]["sum"].tolist() == [12, 2]
        assert saved[name]["gathered"] == [[0], [0, 1]]
    assert saved["0_of_1"]["sum"].tolist() == [12, 1]
    assert saved["0_of_1"]["gathered"] == [[0]]


@pytest.mark.multiprocess
def test_a_request_to_one_rank_rides_with_the_gradients_to_all(saved):
    assert [saved[name]["must_stop"] for name in sorted(saved)] == [True] * 3
