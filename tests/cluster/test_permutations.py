import json
from functools import partial

import numpy as np
import pytest
from command import tessera

from pipeline.pretext.permutation_set import distances, make_permutations, permutations_hash

permutations = partial(tessera, "permutations")


def test_a_set_is_made_measured_and_written(tmp_path):
    out, plot, file = tmp_path / "set.npy", tmp_path / "set.svg", tmp_path / "set-json"
    done = permutations("--size", 100, "--out", out, "--plot", plot, "--json", file)
    assert done.exit_code == 0, done.output
    perms = make_permutations("max_min", 9, 100, seed=0)
    assert (np.load(out) == perms).all()
    result = json.loads(file.read_text())
    assert result.pop("seconds") > 0
    assert result == json.loads(out.with_suffix(".json").read_text())
    assert (result["min_distance"], result["sha256"]) == (6, permutations_hash(perms))
    assert result["mean_distance"] == distances(perms).mean
    assert sum(result["histogram"]) == 100 * 99 / 2
    last = done.output.strip().splitlines()[-1]
    assert last.startswith(
        "100 permutations of 9 tiles (max_min, seed 0): minimum distance 6, mean"
    )
    assert last.endswith(f"written: {out}, {plot}, {file}")
    assert plot.read_text().startswith("<svg")


@pytest.mark.parametrize("method", ["max_mean", "random"])
def test_method_tiles_and_seed_are_those_asked_for(tmp_path, method):
    out = tmp_path / "set.npy"
    done = permutations("--size", 7, "--tiles", 4, "--method", method, "--seed", 3, "--out", out)
    assert done.exit_code == 0, done.output
    assert (np.load(out) == make_permutations(method, 4, 7, seed=3)).all()
    assert json.loads(out.with_suffix(".json").read_text())["method"] == method


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "max"], "method (=max) must be one of max_min, max_mean, random."),
        (["--tiles", "3"], "num_permutations (=9) exceeds the 6 permutations of 3 tiles (3!)"),
        (["--out", "set.bin"], "out (=set.bin) must end in .npy"),
        (["--plot", "set.jpg"], "plot (=set.jpg) must end in .png or .svg."),
    ],
)
def test_what_can_not_be_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = permutations("--size", 9, *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())
