"""Verify finished shards against their manifest and indexes, down to the last byte."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.judge import judge
from pipeline.remote.fetch import FetchConfig, FetchError, map_file, read_bytes
from pipeline.remote.location import is_remote, join, local_path
from pipeline.shards.index import ShardIndex, decode_index, hash_spans, read_index
from pipeline.shards.manifest import Manifest, ShardInfo, folder_of, read_manifest
from pipeline.shards.samples import plain_key
from pipeline.shards.tar import ShardError, walk_tar
from pipeline.shards.third_party.indexing import Progress, Run

# Stored images passed the filters of their own run; here only unreadable ones count.
_ANY_IMAGE = ShardConfig(
    near_duplicates=False, min_side=1, max_pixels=150_000_000, max_scans=10_000, max_seconds=60
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that differs from what was written."""

    shard: str
    key: str
    """Empty unless a single sample is affected."""
    offset: int
    """First byte of the sample in the tar, -1 unless a single sample is affected."""
    what: str

    def __str__(self) -> str:
        where = f", key {self.key}, byte {self.offset}" if self.key else ""
        return f"shard {self.shard}{where}: {self.what}"


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """A shard to check."""

    folder: str
    """Folder of its manifest, a path or a URL."""
    info: ShardInfo
    deep: bool
    """Whether to decode every image, strictly."""

    @property
    def name(self) -> str:
        """Path or URL of the tar."""
        return join(self.folder, self.info.name)


@dataclass(frozen=True, slots=True)
class Verified:
    """Result of verifying a manifest."""

    shards: int
    samples: int
    problems: tuple[Problem, ...]
    """Problems in manifest order."""

    @property
    def ok(self) -> bool:
        """Whether everything is as written."""
        return not self.problems

    def summary(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "ok": self.ok,
            "shards": self.shards,
            "samples": self.samples,
            "problems": [
                {"shard": p.shard, "key": p.key, "offset": p.offset, "what": p.what}
                for p in self.problems
            ],
        }


def verify(location: str, run: Run, *, deep: bool, on_progress: Progress) -> Verified:
    """Check every shard of a manifest.

    Args:
        location: A folder of shards or the manifest in it, as a path or a URL.
        run: Runs the checks: in this process, or in parallel.
        deep: Also decode every image.
        on_progress: Called after every shard.

    Raises:
        ConfigError: The manifest cannot be read, or was edited.
    """
    manifest, folder = read_manifest(location), folder_of(location)
    specs = [CheckSpec(folder, info, deep) for info in manifest.shards]
    found: dict[int, list[Problem]] = {}
    with closing(run(check_shard, specs)) as ended:
        for done, (position, result) in enumerate(ended, 1):
            info = manifest.shards[position]
            if isinstance(result, Exception):
                result = [Problem(info.name, "", -1, f"it cannot be checked: {result}")]
            found[position] = result
            on_progress(done, len(specs), f"{sum(map(len, found.values()))} problems")
    problems = [problem for position in sorted(found) for problem in found[position]]
    return Verified(
        shards=len(specs),
        samples=manifest.num_samples,
        problems=(*problems, *_strangers(manifest, folder)),
    )


def check_shard(spec: CheckSpec) -> list[Problem]:
    """Check one shard: size, hashes, the index against the tar, and the images if `deep`."""
    info = spec.info
    try:
        return _check_bytes(spec, map_file(spec.name))
    except (OSError, FetchError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return [Problem(info.name, "", -1, f"it cannot be read: {reason}.")]


def open_index(folder: str, info: ShardInfo) -> ShardIndex:
    """Read the index of a shard, local or remote.

    Raises:
        ConfigError: It is missing, or does not match the manifest.
        FetchError: It cannot be fetched.
    """
    url = join(folder, info.index)
    if not is_remote(url):
        return read_index(local_path(url), sha256=info.index_sha256)
    return decode_index(read_bytes(url, FetchConfig()), url, sha256=info.index_sha256)


def whole_rows(index: ShardIndex, tar: memoryview) -> NDArray[np.bool_]:
    """Tell which samples of a tar have the indexed bytes, bool (N,)."""
    ends = np.append(index.starts[1:], len(tar))
    inside: NDArray[np.bool_] = (ends <= len(tar)) & (index.starts < ends)
    if not index.span_hashes.any():  # Indexed without reading the images.
        return inside
    if not inside.all():
        num = int(inside.argmin())
        cut = hash_spans(tar[: int(index.starts[num])], index.starts[:num])
        some: NDArray[np.bool_] = np.zeros(len(index), np.bool_)
        some[:num] = cut == index.span_hashes[:num]
        return some
    same: NDArray[np.bool_] = hash_spans(tar, index.starts) == index.span_hashes
    return same


def _check_bytes(spec: CheckSpec, tar: memoryview) -> list[Problem]:
    info = spec.info
    problems: list[Problem] = []

    def note(what: str, key: str = "", offset: int = -1) -> None:
        problems.append(Problem(info.name, key, offset, what))

    if len(tar) != info.num_bytes:
        note(f"it has {len(tar)} bytes, its manifest says {info.num_bytes}.")
    try:
        index = open_index(spec.folder, info)
    except (ConfigError, FetchError) as error:
        note(str(error))
        _check_sha256(info, tar, note)
        return problems
    if len(index) != info.num_samples:
        note(f"its index has {len(index)} samples, its manifest says {info.num_samples}.")
    whole = _check_spans(index, tar, note)
    if not problems:
        _check_members(index, tar, info, note)
    if not problems:
        _check_sha256(info, tar, note)
    if spec.deep:
        _check_images(index, whole, tar, note)
    return problems


def _check_spans(index: ShardIndex, tar: memoryview, note: Callable[..., None]) -> list[int]:
    """Note the damaged samples; returns the rows of the others."""
    whole = whole_rows(index, tar)
    for row in np.flatnonzero(~whole).tolist():
        note(
            "its bytes differ from those that were written.",
            index.keys[row],
            int(index.starts[row]),
        )
    rows: list[int] = np.flatnonzero(whole).tolist()
    return rows


def _check_images(
    index: ShardIndex, rows: Sequence[int], tar: memoryview, note: Callable[..., None]
) -> None:
    for row in rows:
        if (what := _misfit(index, row, tar)) is not None:
            note(what, index.keys[row], int(index.starts[row]))


def _check_sha256(info: ShardInfo, tar: memoryview, note: Callable[..., None]) -> None:
    if info.sha256 is not None and hashlib.sha256(tar).hexdigest() != info.sha256:
        note("its bytes do not match the sha256 in the manifest.")


def _check_members(
    index: ShardIndex, tar: memoryview, info: ShardInfo, note: Callable[..., None]
) -> None:
    """Compare the index with the headers in the tar."""
    try:
        members = {(m.offset, m.size): plain_key(m.name) for m in walk_tar(tar, info.name)}
    except ShardError as error:
        note(str(error))
        return
    if len(set(index.keys)) != len(index.keys):
        note("a key occurs twice in its index.")
    rows = zip(index.keys, index.offsets.tolist(), index.sizes.tolist(), strict=True)
    for row, (key, offset, size) in enumerate(rows):
        name = members.get((offset, size))
        if name is None or not (name == key or name.startswith(f"{key}.")):
            note("its index points to bytes that are not a member.", key, int(index.starts[row]))
        elif index.hashes[row]:
            digest = xxhash.xxh3_64_intdigest(tar[offset : offset + size])
            if digest != index.hashes[row]:
                note("its image has another hash.", key, int(index.starts[row]))


def _misfit(index: ShardIndex, row: int, tar: memoryview) -> str | None:
    """Return what a strict decode finds wrong with an image, or None."""
    start, size = int(index.offsets[row]), int(index.sizes[row])
    found = judge(bytes(tar[start : start + size]), _ANY_IMAGE)
    if found.outcome == "quarantined":
        return f"its image is refused: {found.reason}."
    said = {int(index.widths[row]), int(index.heights[row])}
    if index.widths[row] and {found.width, found.height} != said:
        return (
            f"its image has {found.width} x {found.height} px, its index says "
            f"{index.widths[row]} x {index.heights[row]}."
        )
    return None


def _strangers(manifest: Manifest, folder: str) -> list[Problem]:
    """List tars in the manifest's folder that are not among its shards."""
    if is_remote(folder):
        return []
    ours = {
        local_path(join(folder, info.name)).resolve()
        for info in manifest.shards
        if not is_remote(join(folder, info.name))
    }
    return [
        Problem(path.name, "", -1, "it is beside the manifest, which does not list it.")
        for path in sorted(local_path(folder).glob("*.tar"))
        if path.resolve() not in ours
    ]
