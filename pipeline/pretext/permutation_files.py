"""Permutation sets on the disk: those of others, and a cache of our own."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.atomic import write_atomic
from pipeline.config import ConfigError

_VERSION = 1  # Of the algorithms: another one's sets are never taken for this one's.
_MAX_BYTES = 16 * 2**20  # The largest set, 10,000 rows of 64 int64, takes 5.
_NPY = b"\x93NUMPY"


def read_permutations(path: Path, shape: tuple[int, int]) -> NDArray[np.int64]:
    """Read a set: .npy of integers, or the binary of Noroozi and Favaro's release.

    The binary is little-endian int32: number of rows, number of tiles, then the rows. Tiles may
    count from 0 or, as in all released files, from 1.

    Args:
        path: The file.
        shape: Rows and tiles that it must hold.

    Returns:
        int64 `shape`; row k, column p names the tile shown at position p, from 0.

    Raises:
        ConfigError: The file cannot be read, or holds no such set.
    """
    name = f"permutation_file (={path})"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(
                f"{name} is larger than any set; give a .npy or .bin of permutations."
            )
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}.") from None
    rows = _from_npy(data, name) if data.startswith(_NPY) else _from_binary(data, name)
    if rows.ndim != 2 or rows.shape[1] != shape[1]:
        raise ConfigError(
            f"{name} holds an array of shape {rows.shape}, the puzzle has {shape[1]} tiles: "
            f"{shape[1]} columns are needed. Change grid or give another file."
        )
    if len(rows) != shape[0]:
        raise ConfigError(
            f"{name} holds {len(rows)} permutations, num_permutations (={shape[0]}) must be as "
            f"many; set it to {len(rows)} or give another file."
        )
    rows = rows - 1 if rows.min() == 1 and rows.max() == shape[1] else rows
    wrong = np.flatnonzero((np.sort(rows, axis=1) != np.arange(shape[1])).any(axis=1))
    if len(wrong):
        raise ConfigError(
            f"{name}: row {wrong[0]} (={rows[wrong[0]].tolist()}) is no permutation of "
            f"{shape[1]} tiles ({len(wrong)} such rows); give another file."
        )
    _, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if len(first) < len(rows):
        raise ConfigError(
            f"{name}: row {first[counts > 1].min()} is there more than once "
            f"({len(rows) - len(first)} repeated rows), so that two answers would be right; give "
            "another file."
        )
    return np.ascontiguousarray(rows, dtype=np.int64)


def cached(
    key: str, shape: tuple[int, int], make: Callable[[], NDArray[np.int64]]
) -> NDArray[np.int64]:
    """Return what `make` makes, from the user's cache if it is whole there.

    A damaged file is replaced; a folder that cannot be written is gone without.

    Args:
        key: Names the set, and the file.
        shape: Of the set.
        make: Makes int64 `shape`, always the same for the same key.
    """
    path = _cache_folder() / f"{key}-v{_VERSION}.set"
    try:
        sealed = path.read_bytes()
    except OSError:
        sealed = b""
    size = 8 * shape[0] * shape[1]
    if len(sealed) == 32 + size and sealed[:32] == _seal(path.name, sealed[32:]):
        return np.frombuffer(sealed, dtype="<i8", offset=32).reshape(shape).astype(np.int64)
    made = make()
    body = made.astype("<i8").tobytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, _seal(path.name, body) + body)
    except OSError:
        pass
    return made


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - a
    # home that is not known is a name like any other here, where Path.expanduser raises.
    return Path(base) / "tessera" / "permutations"


def _seal(name: str, body: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + body).digest()


def _from_npy(data: bytes, name: str) -> NDArray[np.int64]:
    try:
        rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{name} is no whole .npy file of numbers: {text}.") from None
    if rows.dtype.kind not in "iu":
        raise ConfigError(f"{name} holds {rows.dtype}, permutations are integers.")
    return rows.astype(np.int64)  # type: ignore[no-any-return]


def _from_binary(data: bytes, name: str) -> NDArray[np.int64]:
    numbers = np.frombuffer(data[: len(data) // 4 * 4], dtype="<i4").astype(np.int64)
    if len(numbers) >= 2:
        num, tiles = (int(n) for n in numbers[:2])
        if num > 0 and tiles > 0 and len(data) == 4 * (2 + num * tiles):
            return numbers[2:].reshape(num, tiles)
    raise ConfigError(
        f"{name} is neither .npy nor the int32 binary (rows, tiles, then rows * tiles numbers): "
        f"it has {len(data)} bytes that do not add up. Give another file."
    )
