"""Decide which image goes into which shard; independent of the order of the work.

DuckDB sorts, groups and joins within `_MEMORY`; the rest spills into the plan's folder.
"""

import errno
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.near.hash import WORDS
from pipeline.ingest.near.search import find_near, new_array, release
from pipeline.ingest.parts import HASH, SCHEMA
from pipeline.shards.labels import sort_classes
from pipeline.shards.manifest import Ledger

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

EXCLUDED = pa.schema(
    [
        ("path", pa.large_string()),
        ("source", pa.string()),
        ("verdict", pa.string()),  # quarantined, filtered or duplicate
        ("reason", pa.string()),
        ("content_hash", HASH),
        ("part", HASH),
        ("offset", pa.int64()),  # of the picture, as in the parts
        ("size", pa.int64()),
        ("stored_hash", pa.uint64()),
        ("near", pa.bool_()),  # whether a duplicate only looks like its winner
        ("winner", pa.large_string()),  # of a duplicate: path of the input in the shards
        ("label", pa.string()),  # of a duplicate whose copies contradict each other
        ("label_conflict", pa.list_(pa.string())),  # all their labels
    ]
)
_SPREAD = SCHEMA.append(pa.field("place", pa.int64()))  # row in its part
_ACCEPTED = SCHEMA.append(pa.field("row", pa.int64())).append(pa.field("first", pa.int64()))
"""Accepted inputs in order of the content hash: `row` counts them, `first` is that of the input
that stands for all of these bytes."""
_SAYS = pa.schema([("row", pa.int64()), ("label", pa.string()), ("caption", pa.string())])
_PICTURES = 24
"""Most pictures of one verdict and reason."""
_KEY_BYTES = 10
"""Of the content hash, in the key of a sample."""

_MEMORY = "192MiB"
_BATCH_ROWS = 2**14
_BUCKET_ROWS = 2**17
"""DuckDB's sort fails, rather than spills, where rows are far larger than its memory; so accepted
inputs are sorted bucket by bucket."""
_MAX_BUCKETS = 2**7
_DISK_FULL = ("No space left on device", "max_temp_directory_size")

_SORTED = """
    SELECT * EXCLUDE (place) FROM bucket
    ORDER BY content_hash, label IS NULL, is_inferred, name, part, place
"""
_PLACEHOLDERS = """
    CREATE TABLE placeholder AS SELECT first FROM accepted WHERE row != first
    GROUP BY first HAVING count(*) >= $max_repeats
"""
_KEPT = """
    CREATE VIEW kept AS SELECT * FROM accepted ANTI JOIN placeholder USING (first)
    WHERE row = first
"""
_RANKED = "SELECT row FROM kept ORDER BY width::BIGINT * height DESC, size DESC, row"
_USED = "CREATE VIEW used AS SELECT * FROM kept ANTI JOIN near USING (row)"
_LOST = """
    CREATE VIEW lost AS
    SELECT a.*, near.winner IS NOT NULL AS near, coalesce(near.winner, a.first) AS winner
    FROM accepted a ANTI JOIN placeholder USING (first) LEFT JOIN near ON near.row = a.first
    WHERE a.row != a.first OR near.winner IS NOT NULL
"""
_SAID = """
    CREATE TABLE said AS
    SELECT winner, row, near, width::BIGINT * height AS pixels, size,
        label, coalesce(is_inferred, false) AS is_inferred, caption
    FROM lost WHERE label IS NOT NULL OR caption IS NOT NULL
    UNION ALL
    SELECT row, row, false, width::BIGINT * height, size,
        label, coalesce(is_inferred, false), caption
    FROM accepted SEMI JOIN lost ON lost.winner = accepted.row
"""
"""What copies of one image say, the kept one included."""
_CONFLICTS = """
    CREATE TABLE labels AS
    SELECT winner, list(DISTINCT label ORDER BY label) AS labels FROM (
        SELECT winner, label FROM said WHERE label IS NOT NULL
        QUALIFY is_inferred = min(is_inferred) OVER (PARTITION BY winner)
    ) GROUP BY winner
"""
"""Labels of copies of one image; a stated one silences those that folders suggest."""
_CARRIED = """
    CREATE TABLE carried AS
    SELECT own.row, CASE WHEN len(labels) = 1 THEN labels[1] END AS label,
        coalesce(own.caption, lent.caption) AS caption
    FROM said own LEFT JOIN labels ON labels.winner = own.row LEFT JOIN (
        SELECT winner, caption FROM said WHERE caption IS NOT NULL
        QUALIFY row_number() OVER (
            PARTITION BY winner ORDER BY near, pixels DESC, size DESC, row
        ) = 1
    ) lent ON lent.winner = own.row
    WHERE own.row = own.winner
"""
"""What the shards say of an image with copies: their one label, and the caption of the best."""
_CHANGED = """
    SELECT carried.row, carried.label, carried.caption FROM carried JOIN said USING (row)
    WHERE carried.label IS DISTINCT FROM said.label
        OR carried.caption IS DISTINCT FROM said.caption
    ORDER BY carried.row
"""
_EXCLUDED = """
    SELECT name AS path, source, outcome AS verdict, reason,
        content_hash, part, "offset", size, stored_hash, false AS near, NULL AS winner,
        NULL AS label, NULL AS label_conflict
    FROM refused
    UNION ALL
    SELECT name, source, 'filtered', 'placeholder',
        content_hash, part, "offset", size, stored_hash, false, NULL, NULL, NULL
    FROM accepted SEMI JOIN placeholder USING (first)
    UNION ALL
    SELECT lost.name, lost.source, 'duplicate', NULL, lost.content_hash, lost.part,
        lost."offset", lost.size, lost.stored_hash, lost.near, won.name,
        CASE WHEN len(labels) > 1 THEN lost.label END, CASE WHEN len(labels) > 1 THEN labels END
    FROM lost JOIN accepted won ON won.row = lost.winner
    LEFT JOIN labels ON labels.winner = lost.winner
    ORDER BY path, part, "offset", verdict, reason
"""
_NOTES = """
    SELECT note, count(*) FROM (SELECT unnest(notes) AS note FROM used) GROUP BY note ORDER BY note
"""
_LABELS = """
    SELECT DISTINCT CASE WHEN carried.row IS NULL THEN used.label ELSE carried.label END AS class
    FROM used LEFT JOIN carried USING (row) WHERE class IS NOT NULL
"""
_NUM_CONFLICTS = "SELECT count(*) FROM labels WHERE len(labels) > 1"
_COUNTS = """
    SELECT source, verdict, reason, near, count(*) FROM excluded GROUP BY ALL
    UNION ALL
    SELECT source, 'accepted', NULL, false, count(*) FROM used GROUP BY source
    ORDER BY ALL
"""
_PICTURED = """
    SELECT * FROM excluded WHERE size > 0
    QUALIFY row_number() OVER (
        PARTITION BY verdict, reason, near, label_conflict IS NULL
        ORDER BY content_hash NULLS FIRST, path, part, "offset"
    ) <= $most
    ORDER BY verdict, reason, near, content_hash NULLS FIRST, path, part, "offset"
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards, and where every other input went."""

    folder: Path
    """Holds the tables; read them with `rows_of`."""
    borders: tuple[int, ...]
    """First image of every shard, then the number of images. They are in order of the content
    hash, so that each shard is a fair sample of all images."""
    classes: tuple[str, ...] | None
    excluded: pa.Table
    """Columns of EXCLUDED, in order of the path; mapped from the disk."""
    pictured: pa.Table
    """Those of `excluded` whose pictures are shown."""
    ledger: Ledger
    sources: dict[str, Ledger]
    notes: dict[str, int]
    label_conflicts: int
    """Images whose copies have contradicting labels; they are stored without one."""


@contextmanager
def _lean_memory() -> Iterator[None]:
    """Make Arrow return memory that it no longer needs: its own pool keeps it."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@contextmanager
def _database(folder: Path) -> Iterator["DuckDBPyConnection"]:
    """Open a database in memory that spills into `folder`; a full disk is an OSError."""
    import duckdb

    settings: dict[str, Any] = {
        "memory_limit": _MEMORY,
        "threads": 1,
        "temp_directory": str(folder / "spilled"),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    try:
        with duckdb.connect(config=settings) as db:
            yield db
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if not any(text in str(error) for text in _DISK_FULL):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from None


@_lean_memory()
def make_plan(tables: Sequence[Path], num_inputs: int, folder: Path, config: ShardConfig) -> Plan:
    """Remove duplicates, order by content and cut into shards.

    Of equal bytes a labelled input is kept, one whose label is stated before one whose label is a
    folder's name, then the one with the smaller name. Of images that look alike the one with more
    pixels is kept, then with more bytes, then with the smaller hash. What is kept bears the label
    of its copies, and if it has none the caption of the best of them; a label that a source states
    beats the names of folders. Where labels contradict each other, it bears none.

    Args:
        tables: Tables of the parts, in any order.
        num_inputs: Rows in all of them.
        folder: Takes the plan's tables; what it held is removed.
        config: Bounds, and whether near duplicates are searched for.

    Raises:
        ConfigError: No image was accepted; the message counts the reasons.
        OSError: The disk is full.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with _database(folder) as db:
        *buckets, refused = _spread(tables, num_inputs, folder)
        batches = _numbered(_sorted_batches(db, buckets))
        accepted = _save(batches, _ACCEPTED, folder / "accepted.arrow")
        db.register("accepted", accepted)
        db.execute(_PLACEHOLDERS, {"max_repeats": config.max_repeats})
        db.execute(_KEPT)
        db.execute("CREATE TABLE near (row BIGINT, winner BIGINT)")
        if config.near_duplicates:
            _search_near(db, accepted, folder)
        for statement in (_USED, _LOST, _SAID, _CONFLICTS, _CARRIED):
            db.execute(statement)
        _save(db.sql(_CHANGED).to_arrow_reader(_BATCH_ROWS), _SAYS, folder / "changed.arrow")
        db.register("refused", _open_stream(refused))
        batches = db.sql(_EXCLUDED).to_arrow_reader(_BATCH_ROWS)
        excluded = _save(batches, EXCLUDED, folder / "excluded.arrow")
        refused.unlink()
        db.register("excluded", excluded)
        sources = _ledgers(db.execute(_COUNTS).fetchall())
        ledger = Ledger.sum(sources.values())
        assert ledger.inputs == num_inputs, "an input got lost"
        if not ledger.accepted:
            reasons = {**ledger.quarantined, **ledger.filtered}
            listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            raise ConfigError(f"0 usable of {num_inputs} images: {listed}. Give other sources.")
        sizes = _write_used(db, folder)
        labels = sort_classes(label for (label,) in db.execute(_LABELS).fetchall())
        return Plan(
            folder=folder,
            borders=tuple(cut(sizes, config.samples_per_shard, config.bytes_per_shard).tolist()),
            classes=tuple(labels) if len(labels) >= 2 else None,
            excluded=excluded,
            pictured=db.sql(_PICTURED, params={"most": _PICTURES}).to_arrow_table().cast(EXCLUDED),
            ledger=ledger,
            sources=sources,
            notes=dict(db.execute(_NOTES).fetchall()),
            label_conflicts=db.execute(_NUM_CONFLICTS).fetchall()[0][0],
        )


def rows_of(folder: Path, first: int, stop: int) -> pa.Table:
    """Read the rows of images `first` to before `stop`, columns as the parts have them."""
    rows = np.fromfile(folder / "used", np.int64, stop - first, offset=8 * first)
    accepted = _open(folder / "accepted.arrow").select(SCHEMA.names)
    table = accepted.slice(rows[0], rows[-1] + 1 - rows[0]).combine_chunks().take(rows - rows[0])
    return _with_changes(table, rows, _open(folder / "changed.arrow"))


def _with_changes(table: pa.Table, rows: NDArray[np.int64], changed: pa.Table) -> pa.Table:
    """Replace label and caption of the images whose copies say something else."""
    numbers = changed.column("row").to_numpy()
    first, stop = np.searchsorted(numbers, [rows[0], rows[-1] + 1]).tolist()
    if first == stop:
        return table
    said = changed.slice(first, stop - first)
    places = np.searchsorted(rows, numbers[first:stop])
    for name in ("label", "caption"):
        number, kind = table.schema.get_field_index(name), table.schema.field(name)
        values = np.array(table.column(name).to_pylist(), object)
        values[places] = said.column(name).to_pylist()
        table = table.set_column(number, kind, pa.array(values.tolist(), kind.type))
    return table


def cut(sizes: NDArray[np.int64], limit: int, max_bytes: int | None) -> NDArray[np.int64]:
    """Cut images in a row into shards.

    Without `max_bytes`, the fewest shards whose lengths differ by at most one; with it, each shard
    takes images while they fit, and one that is larger gets a shard of its own.

    Args:
        sizes: int64 (N,), N > 0, bytes of the images.
        limit: Most images in a shard.
        max_bytes: Most bytes in a shard, or None.

    Returns:
        int64 (S + 1,), first image of every shard, and N.
    """
    num = len(sizes)
    if max_bytes is None:
        num_shards = -(-num // limit)
        return np.arange(num_shards + 1) * num // num_shards
    borders = [0]
    while (first := borders[-1]) < num:
        ends = np.cumsum(sizes[first : first + limit])
        borders.append(first + max(1, int(np.searchsorted(ends, max_bytes, side="right"))))
    return np.array(borders)


def _spread(tables: Sequence[Path], num_inputs: int, folder: Path) -> list[Path]:
    """Write accepted inputs to buckets by the first bits of their hash, others to a last file."""
    num = min(max(1, -(-num_inputs // _BUCKET_ROWS)), _MAX_BUCKETS)
    paths = [folder / f"bucket-{number:03}" for number in range(num + 1)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        outs = [stack.enter_context(pa.ipc.new_stream(file, _SPREAD)) for file in files]
        for rows in _gathered(tables):
            hashes = b"".join(digest or bytes(16) for digest in rows["content_hash"].to_pylist())
            bucket = np.frombuffer(hashes, ">u2")[::8].astype(np.int64) * num // 2**16
            bucket[pc.not_equal(rows["outcome"], "accepted").to_numpy()] = num
            order = np.argsort(bucket, kind="stable")
            rows = rows.take(order)
            ends = np.searchsorted(bucket[order], np.arange(num + 2))
            for out, (first, stop) in zip(outs, pairwise(ends), strict=True):
                if first < stop:
                    out.write_table(rows.slice(first, stop - first))
    return paths


def _gathered(tables: Sequence[Path]) -> Iterator[pa.Table]:
    """Read tables of parts, as many at a time as have about `_BATCH_ROWS` rows."""
    waiting: list[pa.Table] = []
    for number, path in enumerate(tables, 1):
        rows = pq.read_table(path, use_threads=False, partitioning=None)
        waiting.append(rows.append_column("place", pa.array(np.arange(len(rows)))).cast(_SPREAD))
        if sum(map(len, waiting)) >= _BATCH_ROWS or number == len(tables):
            yield pa.concat_tables(waiting)
            waiting = []


def _sorted_batches(db: "DuckDBPyConnection", buckets: list[Path]) -> Iterator[pa.RecordBatch]:
    """Yield the accepted inputs in order of the content hash, equal ones best first."""
    for path in buckets:
        db.register("bucket", _open_stream(path))
        yield from db.sql(_SORTED).to_arrow_reader(_BATCH_ROWS)
        db.unregister("bucket")
        path.unlink()


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Add the columns `row` and `first` to accepted inputs in order of the content hash."""
    start, first, last = 0, 0, b""
    for batch in batches:
        hashes = batch.column("content_hash").to_pylist()
        pairs = list(zip([last, *hashes], hashes, strict=False))
        is_new = [one != other for one, other in pairs]
        keys = [one[:_KEY_BYTES] != other[:_KEY_BYTES] for one, other in pairs]
        assert keys == is_new, "two images share a key"
        rows = np.arange(start, start + len(batch))
        firsts = np.maximum.accumulate(np.where(is_new, rows, first))
        yield batch.append_column("row", pa.array(rows)).append_column("first", pa.array(firsts))
        start, first, last = start + len(batch), firsts[-1], hashes[-1]


def _save(batches: Iterator[pa.RecordBatch], schema: pa.Schema, path: Path) -> pa.Table:
    """Write batches to a file; return them as a table that is mapped from it."""
    with path.open("wb") as file, pa.ipc.new_file(file, schema) as out:
        for batch in batches:
            out.write_batch(batch.cast(schema))
    return _open(path)


def _open(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _open_stream(path: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _search_near(db: "DuckDBPyConnection", accepted: pa.Table, folder: Path) -> None:
    """Fill the table `near`: which kept row loses to which."""
    with (folder / "ranked").open("wb") as file:
        for batch in db.sql(_RANKED).to_arrow_reader(_BATCH_ROWS):
            file.write(batch.column(0).to_numpy())
        if not file.tell():
            return
    words = new_array(folder / "words.npy", np.uint64, (len(accepted), WORDS))
    done = 0
    for batch in accepted.select(["near_words"]).to_batches():
        blobs = b"".join(batch.column(0).to_pylist())
        words[done : done + len(batch)] = np.frombuffer(blobs, "<u8").reshape(-1, WORDS)
        done += len(batch)
        release(words)
    near = find_near(words, np.memmap(folder / "ranked", np.int64, "r+"), folder)
    for start in range(0, len(near), _BATCH_ROWS):
        rows = start + np.flatnonzero(near[start : start + _BATCH_ROWS] >= 0)
        db.register("found", pa.table({"row": rows, "winner": near[rows]}))
        db.execute("INSERT INTO near SELECT * FROM found")
        db.unregister("found")
    for name in ("words.npy", "ranked", "near.npy"):
        (folder / name).unlink()


def _write_used(db: "DuckDBPyConnection", folder: Path) -> NDArray[np.int64]:
    """Write which accepted rows the shards hold, for `rows_of`; return their bytes, int64 (N,)."""
    query = "SELECT row, size FROM used ORDER BY row"
    with (folder / "used").open("wb") as used, (folder / "sizes").open("wb") as sizes:
        for batch in db.sql(query).to_arrow_reader(_BATCH_ROWS):
            used.write(batch.column("row").to_numpy())
            sizes.write(batch.column("size").to_numpy())
    return np.fromfile(folder / "sizes", np.int64)


def _ledgers(counts: Sequence[tuple[str, str, str | None, bool, int]]) -> dict[str, Ledger]:
    """Count the verdicts of every source; rows are source, verdict, reason, near, number."""
    found: dict[str, dict[str, Any]] = {}
    for source, verdict, reason, near, number in counts:
        ledger = found.setdefault(source, defaultdict(int, quarantined={}, filtered={}))
        ledger["inputs"] += number
        ledger["near_duplicate"] += number * near
        if reason is None:
            ledger[verdict] += number
        else:
            ledger[verdict][reason] = number
    empty = {"accepted": 0, "duplicate": 0}
    return {source: Ledger(**{**empty, **ledger}) for source, ledger in found.items()}
