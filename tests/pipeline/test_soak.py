import json

import numpy as np
import pytest

from pipeline.bench.soak import ORDER, _commit, _result, soak
from pipeline.loading.order import Order


@pytest.fixture
def order():
    return Order(np.array([100, 90, 110]), ORDER, seed=0)  # 4 steps of 64, and 44 samples.


def row(order, epoch, step, rank):
    ids = order.rank_batch(epoch, step, rank=rank, world_size=2).tolist()
    after = divmod(epoch * 4 + step + 1, 4)
    state = dict(zip(("epoch", "step"), after, strict=True))
    return {"epoch": epoch, "step": step, "ids": ids, "at": float(step), "state": state}


def write(path, rows, torn=b""):
    path.write_bytes(b"".join(json.dumps(one).encode() + b"\n" for one in rows) + torn)
    return path


def rows_of(order, rank, first, last):
    return [row(order, *divmod(n, 4), rank) for n in range(first, last)]


def test_ledgers_of_killed_readers_add_up_to_whole_epochs(order, tmp_path):
    # The second reader was killed a step behind the first, in the middle of a line.
    killed = [
        write(tmp_path / "a", rows_of(order, 0, 0, 3)),
        write(tmp_path / "b", rows_of(order, 1, 0, 2), torn=b'{"epoch": 0, "st'),
    ]
    first = _commit(killed, None)
    assert (first.state, first.num_images, first.rolled_back) == ({"epoch": 0, "step": 2}, 128, 32)
    rest = [write(tmp_path / f"c{rank}", rows_of(order, rank, 2, 8)) for rank in range(2)]
    result = _result([first, _commit(rest, first.state)], order, 2)
    assert (result["images"], result["remainder"]) == (512, 44)
    assert (result["lost"], result["repeated"], result["misplaced"]) == (0, 0, 0)


def test_readers_killed_before_their_first_batch_go_back_to_the_start(order, tmp_path):
    killed = [write(tmp_path / "a", rows_of(order, 0, 0, 3)), tmp_path / "never written"]
    stretch = _commit(killed, None)
    assert (stretch.state, stretch.num_images, stretch.rolled_back) == (None, 0, 96)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: rows.pop(1), (32, 0, 0)),
        (lambda rows: rows.append(rows[3]), (0, 32, 0)),
        (lambda rows: rows[3]["ids"].pop(), (1, 0, 0)),
        # A sample of the next step in the place of another: one is lost, one comes twice.
        (lambda rows: rows[2]["ids"].__setitem__(0, rows[3]["ids"][0]), (1, 1, 1)),
    ],
)
def test_what_is_lost_repeated_or_misplaced_is_counted(order, tmp_path, change, found):
    rows = rows_of(order, 0, 0, 4)
    change(rows)
    paths = [write(tmp_path / "a", rows), write(tmp_path / "b", rows_of(order, 1, 0, 4))]
    result = _result([_commit(paths, None)], order, 1)
    assert (result["lost"], result["repeated"], result["misplaced"]) == found


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_soak_of_killed_processes_loses_nothing(shards, tmp_path):
    seen = []
    result = soak(shards, tmp_path / "soak", epochs=30, on_progress=lambda *now: seen.append(now))
    assert [stretch["world_size"] for stretch in result["stretches"]] == [2, 3]
    assert result["stretches"][0]["end"] < result["stretches"][1]["end"] == [30, 0]
    assert result["images"] == 30 * 192
    assert (result["lost"], result["repeated"], result["misplaced"]) == (0, 0, 0)
    assert seen[-1] == (30 * 192, 30 * 192)
