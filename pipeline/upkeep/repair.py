"""Repair damaged shards into a new set: intact samples byte for byte, the lost ones listed."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.atomic import open_atomic, write_atomic
from pipeline.config import ConfigError
from pipeline.remote.fetch import FetchConfig, FetchError, map_file, read_bytes
from pipeline.remote.location import is_remote, join, local_path
from pipeline.shards.index import ShardIndex, hash_spans, read_index
from pipeline.shards.manifest import (
    LEDGER_NAME,
    Ledger,
    Manifest,
    ShardInfo,
    finish_folder,
    folder_of,
    ledger_line,
    read_manifest,
    require_empty,
)
from pipeline.shards.tar import ShardError, walk_tar
from pipeline.shards.third_party.indexing import Progress, Run
from pipeline.shards.third_party.scan import ScanSpec, scan_shard
from pipeline.shards.writer import write_tar
from pipeline.upkeep.verify import CheckSpec, Problem, check_shard, open_index, whole_rows

_BLOCK = 512
_END = bytes(2 * _BLOCK)


@dataclass(frozen=True, slots=True)
class MendSpec:
    """A shard to repair."""

    folder: str
    """Folder of its manifest, a path or a URL."""
    info: ShardInfo
    out: Path
    """Folder of the new set."""
    classes: tuple[str, ...]
    number: int
    """Position of the shard in its manifest."""

    @property
    def name(self) -> str:
        """Path or URL of the tar."""
        return join(self.folder, self.info.name)


@dataclass(frozen=True, slots=True)
class Mended:
    """Result of repairing a shard."""

    info: ShardInfo | None
    """Its entry in the new set; None if no sample is intact."""
    lost: tuple[str, ...]
    """Keys of the lost samples; row numbers if the index is lost too."""
    problems: tuple[Problem, ...]
    """Problems found; empty if the shard is intact."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """Result of a repair."""

    manifest: Manifest
    num_mended: int
    """Shards that were rewritten."""
    lost: tuple[tuple[str, str], ...]
    """Shard and key of every lost sample."""
    problems: tuple[Problem, ...]


def repair(location: str, out: Path, run: Run, *, on_progress: Progress) -> Repaired:
    """Make a new set of all intact samples; the old one stays unchanged.

    Intact shards are linked or copied, and stay in place if they have a URL.

    Raises:
        ConfigError: The manifest cannot be read, `out` is not empty, or nothing is intact.
    """
    manifest, folder = read_manifest(location), folder_of(location)
    require_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    specs = [
        MendSpec(folder, info, out, manifest.classes or (), number)
        for number, info in enumerate(manifest.shards)
    ]
    found: dict[int, Mended] = {}
    with closing(run(mend_shard, specs)) as ended:
        for done, (position, result) in enumerate(ended, 1):
            if isinstance(result, Exception):
                raise result
            found[position] = result
            num_lost = sum(len(one.lost) for one in found.values())
            on_progress(done, len(specs), f"{num_lost} samples are lost")
    mended = [found[position] for position in range(len(specs))]
    lost = [
        (info.name, key)
        for info, one in zip(manifest.shards, mended, strict=True)
        for key in one.lost
    ]
    made = _new_manifest(manifest, [one.info for one in mended if one.info], len(lost))
    finish_folder(out, made, _ledger(folder, lost))
    return Repaired(
        manifest=made,
        num_mended=sum(bool(one.problems) and one.info is not None for one in mended),
        lost=tuple(lost),
        problems=tuple(problem for one in mended for problem in one.problems),
    )


def mend_shard(spec: MendSpec) -> Mended:
    """Keep the intact samples of one shard."""
    problems = tuple(check_shard(CheckSpec(spec.folder, spec.info, deep=False)))
    if not problems:
        return Mended(_keep(spec), (), ())
    try:
        index = open_index(spec.folder, spec.info)
    except (ConfigError, FetchError):
        return _mend_without_index(spec, problems)
    try:
        tar = map_file(spec.name)
    except (OSError, FetchError):
        return Mended(None, index.keys, problems)
    rows = whole_rows(index, tar)
    info = _write(spec, index, rows, tar) if rows.any() else None
    return Mended(info, tuple(index.keys[row] for row in np.flatnonzero(~rows)), problems)


def _mend_without_index(spec: MendSpec, problems: tuple[Problem, ...]) -> Mended:
    """Reindex a shard whose index is lost; if its tar is damaged too, all of it is lost."""
    everything = tuple(map(str, range(spec.info.num_samples)))
    with tempfile.TemporaryDirectory(prefix="tessera-repair-") as scratch:
        try:
            record = scan_shard(ScanSpec(spec.name, Path(scratch), fast=False)).record
        except (ShardError, ConfigError, OSError):
            return Mended(None, everything, problems)
        if record.num_samples != spec.info.num_samples or record.sha256 != spec.info.sha256:
            return Mended(None, everything, problems)
        index = read_index(Path(scratch) / record.index, sha256=record.index_sha256)
        numbers = [spec.classes.index(n) if n in spec.classes else -1 for n in record.names]
        if numbers:
            index = replace(index, labels=np.array([*numbers, -1], np.int32)[index.labels])
        info = _write(spec, index, np.ones(len(index), np.bool_), map_file(spec.name))
    return Mended(info, (), problems)


def _keep(spec: MendSpec) -> ShardInfo:
    """Take over an intact shard: linked or copied, or by its URL."""
    stem = _stem(spec)
    index_path = spec.out / f"{stem}.parquet"
    write_atomic(index_path, read_bytes(join(spec.folder, spec.info.index), FetchConfig()))
    changed = {"name": spec.name, "index": index_path.name, "ledger": _carry_ledger(spec, None)}
    if not is_remote(spec.name):
        target = spec.out / f"{stem}.tar"
        _link(local_path(spec.name), target)
        changed["name"] = target.name
    return spec.info.model_copy(update=changed)


def _carry_ledger(spec: MendSpec, keys: Sequence[str] | None) -> str | None:
    """Copy the shard's ledger table, reduced to `keys`; None if it cannot be read."""
    if spec.info.ledger is None:
        return None
    try:
        data = read_bytes(join(spec.folder, spec.info.ledger), FetchConfig())
        table = pq.read_table(pa.BufferReader(data))
    except (OSError, FetchError, pa.ArrowException):
        return None  # It is not part of what is trained on.
    if keys is not None:
        table = table.filter(pc.is_in(table.column("key"), pa.array(keys, pa.string())))
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_statistics=False)
        data = sink.getvalue()
    name = f"{_stem(spec)}.ledger.parquet"
    write_atomic(spec.out / name, data)
    return name


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # Another file system, or one without links.
        with source.open("rb") as file, open_atomic(target) as copy:
            shutil.copyfileobj(file, copy)


def _write(
    spec: MendSpec, index: ShardIndex, rows: NDArray[np.bool_], tar: memoryview
) -> ShardInfo:
    """Write the spans of the given rows one after another, with an index."""
    kept = np.flatnonzero(rows)
    ends = np.append(index.starts[1:], len(tar))
    spans = [bytes(tar[int(index.starts[row]) : int(ends[row])]) for row in kept]
    if kept[-1] == len(index) - 1:  # The last span holds the end marker of the tar.
        spans[-1] = _without_end(spans[-1], spec.info.name)
    starts = np.cumsum([0, *map(len, spans[:-1])]).astype(np.int64)

    def moved(tar: memoryview) -> ShardIndex:
        return ShardIndex(
            keys=tuple(index.keys[row] for row in kept),
            starts=starts,
            offsets=index.offsets[kept] - index.starts[kept] + starts,
            sizes=index.sizes[kept],
            widths=index.widths[kept],
            heights=index.heights[kept],
            hashes=index.hashes[kept],
            span_hashes=hash_spans(tar, starts),
            labels=index.labels[kept],
        )

    path = spec.out / f"{_stem(spec)}.tar"
    info = write_tar(path, lambda file: file.writelines([*spans, _END]), moved)
    ledger = _carry_ledger(spec, [index.keys[row] for row in kept])
    return info.model_copy(update={"ledger": ledger})


def _without_end(span: bytes, shard: str) -> bytes:
    last = list(walk_tar(memoryview(span), shard))[-1]
    return span[: last.offset + -(-last.size // _BLOCK) * _BLOCK]


def _stem(spec: MendSpec) -> str:
    """Return the stem of the shard's new files, distinct for equal names in two folders."""
    name = Path(spec.info.name).name.removesuffix(".tar")
    return name if name == spec.info.name.removesuffix(".tar") else f"{spec.number:06}-{name}"


def _new_manifest(old: Manifest, shards: Sequence[ShardInfo], num_lost: int) -> Manifest:
    if not shards:
        raise ConfigError(f"0 of {old.num_samples} samples are intact; shard again.")
    before = old.ledger
    quarantined = dict(before.quarantined)
    if num_lost:
        quarantined["damaged"] = quarantined.get("damaged", 0) + num_lost
    changed = {"accepted": before.accepted - num_lost, "quarantined": quarantined}
    # Which source the lost ones came from is unknown.
    apart: dict[str, object] = {"sources": {}, "notes": {}} if num_lost else {}
    return old.model_copy(
        update={
            "shards": tuple(shards),
            "ledger": Ledger(**{**before.model_dump(), **changed}),
            **apart,
        }
    )


def _ledger(folder: str, lost: Sequence[tuple[str, str]]) -> Iterator[bytes]:
    """Carry the ledger over, and add a line for every lost sample."""
    with suppress(FileNotFoundError, FetchError):
        yield read_bytes(join(folder, LEDGER_NAME), FetchConfig())
    for shard, key in lost:
        row = {"path": f"{shard}/{key}", "verdict": "quarantined", "reason": "damaged"}
        yield ledger_line(row)
