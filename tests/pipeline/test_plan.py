import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from crawled_rows import content, look, row, write_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.ingest import left_out_rows, spread
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.exchange import exchange
from pipeline.ingest.near_rows import rank
from pipeline.ingest.parts import SCHEMA
from pipeline.ingest.plan import cut, make_plan, rows_of
from pipeline.shards.manifest import Ledger

CONFIG = ShardConfig(samples_per_shard=4)


def plan_of(rows, folder, config=CONFIG, num_tables=1):
    tables = write_tables(folder, rows, num_tables)
    return make_plan(tables, len(rows), folder / "plan", config)


def held(plan):
    """Rows of all shards, in order."""
    ends = pairwise(plan.borders)
    return [row for first, stop in ends for row in rows_of(plan.folder, first, stop).to_pylist()]


def described(plan):
    """All that a plan says, comparable."""
    table = plan.left_out.drop_columns(["part"]).to_pylist()
    names = [row["name"] for row in held(plan)]
    return names, plan.classes, table, plan.ledger, plan.sources, plan.notes


OUTCOMES = st.sampled_from(["accepted", "accepted", "quarantined", "filtered"])
INPUTS = st.dictionaries(
    st.text("abc", min_size=1, max_size=6),
    st.tuples(
        st.integers(0, 9),  # content
        st.integers(0, 12),  # look; from 10 on, that of the content
        OUTCOMES,
        st.sampled_from(["s", "t"]),
        st.sampled_from([None, "cat", "dog"]),
    ),
    min_size=1,
).map(
    lambda found: [
        row(
            name,
            number,
            outcome,
            source=source,
            label=label,
            # Equal bytes look alike.
            **({"near_words": look(number % 5)} if outcome == "accepted" and alike < 5 else {}),
        )
        for name, (number, alike, outcome, source, label) in found.items()
    ]
)


def of_one_look(rows):
    """Give rows of equal content the near words of the first."""
    seen = {}
    return [
        {**r, "near_words": seen.setdefault(r["content_hash"], r["near_words"])}
        if r["outcome"] == "accepted"
        else r
        for r in rows
    ]


@settings(deadline=None, max_examples=60)
@given(INPUTS, st.integers(1, 5), st.sampled_from([None, 1, 3]), st.randoms())
def test_planning_partitions_the_inputs_in_any_order(inputs, limit, max_repeats, rng):
    inputs = of_one_look(inputs)
    config = ShardConfig(samples_per_shard=limit, max_repeats=max_repeats)
    with tempfile.TemporaryDirectory() as folder:
        repeats = Counter(r["content_hash"] for r in inputs if r["outcome"] == "accepted")
        if all(max_repeats and number > max_repeats for number in repeats.values()):
            with pytest.raises(ConfigError, match=f"0 usable of {len(inputs)} images: "):
                plan_of(inputs, Path(folder), config)
            return
        plan = plan_of(inputs, Path(folder), config)
        first = described(plan)
        kept, left_out = held(plan), plan.left_out.to_pylist()
        sizes = [len(rows_of(plan.folder, *ends)) for ends in pairwise(plan.borders)]
        rng.shuffle(inputs)
        again = described(plan_of(inputs, Path(folder), config, num_tables=3))
    assert again == first
    names = [r["name"] for r in kept]
    paths = [r["path"] for r in left_out]
    assert sorted(names + paths) == sorted(r["name"] for r in inputs)
    assert paths == sorted(paths)
    hashes = [r["content_hash"] for r in kept]
    assert hashes == sorted(set(hashes))
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    assert all(r["winner"] in names for r in left_out if r["verdict"] == "duplicate")
    assert Ledger.sum(plan.sources.values()) == plan.ledger
    for source, ledger in plan.sources.items():
        assert ledger.inputs == sum(r["source"] == source for r in inputs)
        assert ledger.accepted == sum(r["source"] == source for r in kept)


def test_of_equal_files_a_labelled_one_is_kept_then_the_smaller_name(tmp_path):
    rows = [
        row("a/1.jpg", 1),
        row("b/1.jpg", 1, label="cat", source="t"),
        row("c/1.jpg", 1, label="dog", source="t"),
        row("z.jpg", 2, label="dog"),
    ]
    plan = plan_of(rows, tmp_path)
    assert {r["name"] for r in held(plan)} == {"b/1.jpg", "z.jpg"}
    winners = {r["path"]: (r["winner"], r["near"]) for r in plan.left_out.to_pylist()}
    assert winners == {"a/1.jpg": ("b/1.jpg", False), "c/1.jpg": ("b/1.jpg", False)}
    assert plan.classes == ("cat", "dog")
    assert (plan.sources["s"].duplicate, plan.sources["t"].duplicate) == (1, 1)


def test_bytes_that_too_many_inputs_hold_are_a_placeholder(tmp_path):
    rows = [row(f"{i}.jpg", 1) for i in range(4)] + [row(f"x{i}.jpg", 2) for i in range(3)]
    plan = plan_of(rows, tmp_path, ShardConfig(max_repeats=3))
    assert plan.ledger.filtered == {"placeholder": 4}
    assert (plan.ledger.accepted, plan.ledger.duplicate) == (1, 2)
    keep_one = plan_of(rows, tmp_path, ShardConfig(max_repeats=None))
    assert (keep_one.ledger.accepted, keep_one.ledger.duplicate) == (2, 5)


def test_of_images_that_look_alike_the_largest_is_kept(tmp_path):
    alike = {"near_words": look(1)}
    rows = [
        row("small.jpg", 1, **alike),
        row("large.jpg", 2, width=640, height=480, **alike),
        row("again.jpg", 1, **alike),  # The bytes of small.jpg, which another stands for.
        row("other.jpg", 3),
    ]
    plan = plan_of(rows, tmp_path)
    assert {r["name"] for r in held(plan)} == {"large.jpg", "other.jpg"}
    found = {r["path"]: (r["verdict"], r["winner"], r["near"]) for r in plan.left_out.to_pylist()}
    near = ("duplicate", "large.jpg", True)
    assert found == {"small.jpg": near, "again.jpg": near}
    assert (plan.ledger.duplicate, plan.ledger.near_duplicate) == (2, 2)
    apart = plan_of(rows, tmp_path, ShardConfig(near_duplicates=False))
    assert (apart.ledger.accepted, apart.ledger.near_duplicate) == (3, 0)


def test_of_images_that_look_alike_and_are_equally_large_the_smaller_hash_is_kept(tmp_path):
    rows = [row(f"{i}.jpg", i, size=1000, near_words=look(1)) for i in range(9)]
    best = min(rows, key=lambda r: r["content_hash"])
    plan = plan_of(rows, tmp_path)
    assert [r["name"] for r in held(plan)] == [best["name"]]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), max_size=60),
    st.sampled_from([1, 2, 7, 64]),
)
def test_rows_are_ranked_by_pixels_then_bytes_then_hash(larger, per_partition):
    rows = [
        row(f"{i}.jpg", i, width=side * 64, size=1000 + size)
        for i, (side, size) in enumerate(larger)
    ]
    with tempfile.TemporaryDirectory() as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spread, "ROWS_PER_PARTITION", per_partition)
        tables = write_tables(Path(made), rows)
        kept = exchange(tables, len(rows), Path(made), None, lambda left_out: None)
        order = rank(kept, Path(made)).tolist()
        by_hash = [r for _, part in kept.partitions(SCHEMA.names) for r in part.to_pylist()]
    assert [r["content_hash"] for r in by_hash] == sorted(r["content_hash"] for r in rows)
    places = range(len(rows))
    expected = sorted(places, key=lambda i: (-by_hash[i]["width"], -by_hash[i]["size"], i))
    assert order == expected


def test_the_number_of_partitions_changes_nothing(tmp_path, monkeypatch):
    rows = [row(f"{i:03}.jpg", i % 150, label=f"c{i % 3}", notes=["reduced"]) for i in range(200)]
    rows += [row(f"cut{i}.jpg", 1000 + i, "quarantined") for i in range(20)]
    one = described(plan_of(rows, tmp_path / "one"))
    monkeypatch.setattr(spread, "ROWS_PER_PARTITION", 16)
    monkeypatch.setattr(spread, "_ROWS_AT_ONCE", 50)
    monkeypatch.setattr(spread, "_ROWS_PER_PIECE", 1)
    monkeypatch.setattr(left_out_rows, "_ROWS_AT_ONCE", 7)
    plan = plan_of(rows, tmp_path / "many", num_tables=9)
    assert len(list(plan.folder.glob("kept-*"))) == 14
    assert described(plan) == one
    assert plan.notes == {"reduced": 150}


def test_a_sample_holds_on_to_nothing_else():
    values = np.arange(10 * spread.ROWS_PER_PARTITION)
    found = spread.sample(values, len(values))
    assert not np.shares_memory(found, values)
    assert 10 * spread._SAMPLES <= len(found) <= 12 * spread._SAMPLES


def test_nothing_usable_counts_the_reasons(tmp_path):
    rows = [row("a", 1, "quarantined"), row("b", 2, "filtered"), row("c", 3, "filtered")]
    with pytest.raises(ConfigError, match="0 usable of 3 images: 1 truncated, 2 min_side"):
        plan_of(rows, tmp_path)


def test_one_class_is_no_class(tmp_path):
    rows = [row("a/1", 1, label="a"), row("b/2", 2, "quarantined", label="b"), row("3", 3)]
    assert plan_of(rows, tmp_path).classes is None


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 9), st.integers(1, 80))
def test_cutting_keeps_the_bounds(sizes, limit, max_bytes):
    even = np.diff(cut(np.array(sizes), limit, None))
    assert even.sum() == len(sizes)
    assert max(even) <= limit
    assert max(even) - min(even) <= 1
    borders = cut(np.array(sizes), limit, max_bytes)
    assert (borders[0], borders[-1]) == (0, len(sizes))
    for first, stop in pairwise(borders):
        assert 0 < stop - first <= limit
        assert sum(sizes[first:stop]) <= max_bytes or stop - first == 1


def test_hashes_are_ordered_as_their_digits_are(tmp_path):
    plan = plan_of([row(f"{i}", i) for i in range(40)], tmp_path)
    assert [r["content_hash"] for r in held(plan)] == sorted(content(i) for i in range(40))
