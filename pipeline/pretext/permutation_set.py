"""Permutation sets for jigsaw puzzles: seeded, far apart, named by their hash."""

import functools
import hashlib
import io
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import assert_never

from pipeline.atomic import write_atomic, write_json
from pipeline.config import ConfigError

PermutationMethod = Literal["max_min", "max_mean", "random"]

_VERSION = 1  # Version of the algorithms, so that sets of another are never read as ours.
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

    A damaged file is replaced; without a writable folder nothing is cached.

    Args:
        key: Names the set and the file.
        shape: Shape of the set.
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


_MAX_ENUMERATED = 9  # 9! = 362,880 rows; above, a sample of that many stands for all.
_BLOCK = 8192
"""Candidates that are measured at a time: their distances stay in the processor's cache."""
_TAKEN = -(2**30)


def permutation_set(
    method: PermutationMethod, num_tiles: int, size: int, *, seed: int
) -> NDArray[np.int64]:
    """Return a set, made once: by this process, or by an earlier one of the same user.

    Returns:
        int64 (size, num_tiles), a copy; row k, column p names the tile shown at position p.

    Raises:
        ConfigError: There are fewer than `size` permutations.
    """
    return _known(method, num_tiles, size, seed).copy()


@functools.cache
def _known(method: PermutationMethod, num_tiles: int, size: int, seed: int) -> NDArray[np.int64]:
    key = f"{method}-{num_tiles}-{size}-{seed}"
    make = functools.partial(make_permutations, method, num_tiles, size, seed=seed)
    return cached(key, (size, num_tiles), make)


def make_permutations(
    method: PermutationMethod, num_tiles: int, size: int, *, seed: int
) -> NDArray[np.int64]:
    """Make a set, uncached; arguments and result are those of `permutation_set`."""
    match method:
        case "max_min":
            return max_min_hamming_set(num_tiles, size, seed=seed)
        case "max_mean":
            return max_mean_hamming_set(num_tiles, size, seed=seed)
        case "random":
            rows = _candidates(num_tiles, size, seed)[:, :size]
            return np.ascontiguousarray(rows.T, dtype=np.int64)
        case _:
            assert_never(method)


def max_min_hamming_set(num_tiles: int, size: int, *, seed: int) -> NDArray[np.int64]:
    """Pick permutations greedily: the largest minimum distance first, ties by the largest sum.

    The maximal mean distance of Noroozi and Favaro 2016 (algorithm 1) lets pairs at distance 2
    into the set; the minimum is what keeps two answers apart, and the sum, as a tie-break, loses
    nothing of the mean. Remaining ties go to the first in a seeded shuffle of the candidates.

    Returns:
        int64 (size, num_tiles); row k, column p names the tile shown at position p.

    Raises:
        ConfigError: There are fewer than `size` permutations.
    """
    # One integer ranks a candidate: the minimum outweighs any sum.
    return _greedy(num_tiles, size, seed, min_weight=size * num_tiles + 1)


def max_mean_hamming_set(num_tiles: int, size: int, *, seed: int) -> NDArray[np.int64]:
    """Pick permutations greedily: the largest mean distance to those picked before.

    Algorithm 1 of Noroozi and Favaro 2016. Ties go to the first in a seeded shuffle of the
    candidates: in lexicographic order, as in released scripts, thousands of pairs differ in two
    tiles only.

    Returns and raises as `max_min_hamming_set`.
    """
    return _greedy(num_tiles, size, seed, min_weight=0)


@dataclass(frozen=True, slots=True)
class Distances:
    """Hamming distances over all pairs of a set."""

    min: int
    mean: float
    histogram: tuple[int, ...]
    """Pairs at distance 0..T."""


def distances(perms: NDArray[np.int64]) -> Distances:
    """Measure a set of at least two permutations, (K, T)."""
    num_tiles = perms.shape[1]
    histogram = np.zeros(num_tiles + 1, dtype=np.int64)
    _count_pairs(np.ascontiguousarray(perms, dtype=np.int64), histogram)
    pairs = int(histogram.sum())
    return Distances(
        min=int(np.flatnonzero(histogram)[0]),
        mean=float((histogram * np.arange(num_tiles + 1)).sum() / pairs),
        histogram=tuple(int(n) for n in histogram),
    )


def permutations_hash(perms: NDArray[np.int64]) -> str:
    """Name a set: SHA-256 of its rows as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(perms, dtype="<i8").tobytes()).hexdigest()


def write_permutations(
    path: Path, perms: NDArray[np.int64], *, method: PermutationMethod, seed: int
) -> Path:
    """Write a set as .npy, and beside it a .json that says what it is: both whole or not at all.

    Returns:
        The .json: size, tiles, method, seed, sha256 of the rows, and the distances.

    Raises:
        ConfigError: The path does not end in .npy.
    """
    if path.suffix != ".npy":
        raise ConfigError(f"out (={path}) must end in .npy, the format the set is written in.")
    about = describe(perms) | {"method": method, "seed": seed}
    array = io.BytesIO()
    np.save(array, perms, allow_pickle=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, array.getvalue())
    beside = path.with_suffix(".json")
    write_json(beside, about)
    return beside


def describe(perms: NDArray[np.int64]) -> dict[str, Any]:
    """Say what a set is, for JSON; the histogram counts pairs at distance 0..T."""
    found = distances(perms)
    return {
        "size": len(perms),
        "tiles": perms.shape[1],
        "sha256": permutations_hash(perms),
        "min_distance": found.min,
        "mean_distance": found.mean,
        "histogram": list(found.histogram),
    }


def _greedy(num_tiles: int, size: int, seed: int, *, min_weight: int) -> NDArray[np.int64]:
    candidates = _candidates(num_tiles, size, seed)
    chosen = np.zeros(size, dtype=np.int64)  # The first candidate opens the set.
    _choose(candidates, chosen, min_weight)
    return np.ascontiguousarray(candidates[:, chosen].T, dtype=np.int64)


@njit(cache=True)
def _choose(candidates: Any, chosen: Any, min_weight: Any) -> None:
    """Fill `chosen` (size,), the first of which is given, with columns of candidates (T, N)."""
    num_tiles, num = candidates.shape
    smallest = np.full(num, num_tiles, dtype=np.uint8)
    total = np.zeros(num, dtype=np.int32)
    rank = np.empty(_BLOCK, dtype=np.int32)
    for k in range(1, len(chosen)):
        last = candidates[:, chosen[k - 1]].copy()
        total[chosen[k - 1]] = _TAKEN
        best = np.int32(2 * _TAKEN)
        for start in range(0, num, _BLOCK):
            block = slice(start, min(num, start + _BLOCK))
            here = rank[: block.stop - start]
            _rank(candidates[:, block], last, smallest[block], total[block], min_weight, here)
            top = here.max()
            if top > best:  # The first among equals.
                best = top
                chosen[k] = start + here.argmax()


@njit(cache=True)
def _rank(
    candidates: Any, last: Any, smallest: Any, total: Any, min_weight: Any, rank: Any
) -> None:
    """Add the distances to `last` (T,) to `smallest` and `total`, and rank what is left."""
    apart = np.zeros(len(rank), dtype=np.uint8)
    for t in range(len(last)):
        row, tile = candidates[t], last[t]
        for i in range(len(rank)):
            apart[i] += np.uint8(row[i] != tile)
    for i in range(len(rank)):
        smallest[i] = min(smallest[i], apart[i])
        total[i] += np.int32(apart[i])
        rank[i] = np.int32(np.int32(smallest[i]) * np.int32(min_weight) + total[i])


@njit(cache=True)
def _count_pairs(perms: Any, histogram: Any) -> None:
    for j in range(len(perms)):
        for k in range(j + 1, len(perms)):
            apart = 0
            for t in range(perms.shape[1]):
                apart += perms[j, t] != perms[k, t]
            histogram[apart] += 1


def _candidates(num_tiles: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Return distinct permutations in random order, uint8 (num_tiles, N): one row a position.

    Raises:
        ConfigError: There are fewer than `size`.
    """
    if size > math.factorial(num_tiles):
        raise ConfigError(
            f"num_permutations (={size}) exceeds the {math.factorial(num_tiles)} permutations of "
            f"{num_tiles} tiles ({num_tiles}!); lower it."
        )
    rng = np.random.Generator(np.random.Philox(seed))
    if num_tiles <= _MAX_ENUMERATED:
        flat = np.fromiter(
            itertools.chain.from_iterable(itertools.permutations(range(num_tiles))), dtype=np.uint8
        )
        rows = flat.reshape(-1, num_tiles)
    else:
        identity = np.tile(np.arange(num_tiles, dtype=np.uint8), (math.factorial(9), 1))
        rows = np.unique(rng.permuted(identity, axis=1), axis=0)
    if size > len(rows):
        raise ConfigError(
            f"num_permutations (={size}) exceeds the {len(rows)} distinct permutations drawn of "
            f"{num_tiles} tiles; lower it."
        )
    return cast(NDArray[np.uint8], np.ascontiguousarray(rows[rng.permutation(len(rows))].T))
