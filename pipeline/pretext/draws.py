"""Counter-based random numbers: a draw depends on the sample, never on where it is computed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

# Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3",
# section 3.2): multipliers and the Weyl constants that bump the key.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


@njit(cache=True, inline="always")
def _rounds(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@njit(cache=True)  # In NumPy a batch of 64 costs more in calls than in arithmetic.
def _draw(ids: Any, epochs: Any, first_key: Any, second_key: Any, words: Any) -> None:
    """Fill uint64 (B, 4 K): block k of sample b is the cipher of (id, epoch, k)."""
    for b in range(words.shape[0]):
        low, high = np.uint64(ids[b]) & _LOW, np.uint64(ids[b]) >> _SHIFT
        epoch = np.uint64(epochs[b])
        for block in range(words.shape[1] // 4):
            c0, c1, c2, c3 = _rounds(low, high, epoch, np.uint64(block), first_key, second_key)
            at = 4 * block
            words[b, at], words[b, at + 1], words[b, at + 2], words[b, at + 3] = c0, c1, c2, c3


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers of a batch of samples, keyed by (seed, epoch, sample id, name of the draw).

    The same sample gets the same numbers in any batch, on any rank and after any resume.
    """

    seed: int
    epoch: int | NDArray[np.int64]
    """One for all samples, or int64 (B,)."""
    sample_ids: NDArray[np.int64]
    """int64 (B,)."""

    def bits(self, name: str, num: int) -> NDArray[np.uint64]:
        """Draw 32 random bits, `num` times for each sample.

        Returns:
            uint64 (B, num), values below 2**32. The first columns do not depend on `num`.
        """
        hashed = xxhash.xxh3_64_intdigest(f"{self.seed}:{name}".encode())
        batch = len(self.sample_ids)
        words = np.empty((batch, -(-num // 4) * 4), np.uint64)
        epochs = np.broadcast_to(np.asarray(self.epoch, np.int64), (batch,))
        keys = np.uint64(hashed & 0xFFFFFFFF), np.uint64(hashed >> 32)
        _draw(self.sample_ids, epochs, *keys, words)
        return words[:, :num]

    def uniform(self, name: str, num: int) -> NDArray[np.float64]:
        """Draw from [0, 1).

        Returns:
            float64 (B, num), multiples of 2**-32.
        """
        return self.bits(name, num).astype(np.float64) * 2.0**-32

    def integers(self, name: str, high: int, num: int) -> NDArray[np.int64]:
        """Draw from 0..high - 1, `high` at most 2**31 (bias below high / 2**32).

        Returns:
            int64 (B, num).
        """
        return ((self.bits(name, num) * np.uint64(high)) >> _SHIFT).astype(np.int64)
