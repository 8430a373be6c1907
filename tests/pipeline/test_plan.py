import errno
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
from pipeline.ingest import plan as plan_module
from pipeline.ingest.config import ShardConfig
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
    table = plan.excluded.drop_columns(["part"]).to_pylist()
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
        kept, excluded = held(plan), plan.excluded.to_pylist()
        sizes = [len(rows_of(plan.folder, *ends)) for ends in pairwise(plan.borders)]
        rng.shuffle(inputs)
        again = described(plan_of(inputs, Path(folder), config, num_tables=3))
    assert again == first
    names = [r["name"] for r in kept]
    paths = [r["path"] for r in excluded]
    assert sorted(names + paths) == sorted(r["name"] for r in inputs)
    assert paths == sorted(paths)
    hashes = [r["content_hash"] for r in kept]
    assert hashes == sorted(set(hashes))
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    assert all(r["winner"] in names for r in excluded if r["verdict"] == "duplicate")
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
    winners = {r["path"]: (r["winner"], r["near"]) for r in plan.excluded.to_pylist()}
    assert winners == {"a/1.jpg": ("b/1.jpg", False), "c/1.jpg": ("b/1.jpg", False)}
    assert (plan.classes, plan.label_conflicts) == (None, 1)  # They contradict each other.
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
    found = {r["path"]: (r["verdict"], r["winner"], r["near"]) for r in plan.excluded.to_pylist()}
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


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=60))
def test_of_images_that_look_alike_pixels_then_bytes_then_the_hash_decide(larger):
    rows = [
        row(f"{i}.jpg", i, width=side * 64, size=1000 + size, near_words=look(1))
        for i, (side, size) in enumerate(larger)
    ]
    best = min(rows, key=lambda r: (-r["width"], -r["size"], r["content_hash"]))
    with tempfile.TemporaryDirectory() as made:
        plan = plan_of(rows, Path(made))
        assert [r["name"] for r in held(plan)] == [best["name"]]
        assert {r["winner"] for r in plan.excluded.to_pylist()} <= {best["name"]}


def test_neither_the_number_of_buckets_nor_memory_changes_anything(tmp_path, monkeypatch):
    rows = [
        row(f"{i:04}.jpg", i % 3000, label=f"c{i % 3}", notes=["reduced"], caption=f"{i}" * 1000)
        for i in range(4000)
    ]
    rows += [row(f"cut{i}.jpg", 4000 + i, "quarantined") for i in range(20)]
    config = ShardConfig(near_duplicates=False)
    one = described(plan_of(rows, tmp_path / "one", config))
    monkeypatch.setattr(plan_module, "_MEMORY", "32MiB")
    monkeypatch.setattr(plan_module, "_BATCH_ROWS", 300)
    monkeypatch.setattr(plan_module, "_BUCKET_ROWS", 500)
    plan = plan_of(rows, tmp_path / "many", config, num_tables=9)
    assert described(plan) == one
    assert plan.notes == {"reduced": 3000}
    left = {path.name for path in plan.folder.iterdir()}
    assert left == {"accepted.arrow", "changed.arrow", "excluded.arrow", "sizes", "used"}


def test_odd_characters_in_the_folder_are_no_pattern(tmp_path):
    folder = tmp_path / "a[b]*?{c},d=1"
    assert plan_of([row("1.jpg", 1)], folder).ledger.accepted == 1


def test_a_disk_without_space_for_the_plan_is_one_clear_error(tmp_path, small_disk):
    rows = [row(f"{i}.jpg", i, caption="c" * 500) for i in range(3_000)]
    with pytest.raises(OSError, match="No space left") as caught:
        make_plan(write_tables(tmp_path, rows), len(rows), small_disk / "plan", CONFIG)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(small_disk / "plan")


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
