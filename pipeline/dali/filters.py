"""The filter of the compiled kernel: a triangle as wide as the scale, at least two pixels."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import intrinsic

GROUP = 4
"""Taps are summed four at a time: the widest filter of a scale up to 2."""

# No flag that lets the compiler choose how sums are formed or rounded: the choice depends on what
# was compiled before, in which process, and pixels must not. Division by zero cannot happen
# (px > 0), and NaN cannot arise from uint8.
EXACT = {"fastmath": {"nnan", "ninf", "nsz"}, "error_model": "numpy", "nogil": True}


@intrinsic
def fma(_: Any, a: Any, b: Any, c: Any) -> Any:
    """Give a * b + c of float32, rounded once."""

    def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), generate


@njit(**EXACT, cache=True)
def taps(px: Any, side: Any) -> Any:
    """First source pixel and weights of each of `px` places along an axis of `side` pixels.

    Beyond the edge of the crop its outermost pixel is repeated. Returns int64 (px,) and float32
    (px, K), K a multiple of the group.
    """
    scale = side / px
    reach = max(scale, 1.0)
    num = int(np.ceil(2 * reach))  # All that an open interval of this length can hold.
    num = GROUP * ((num + GROUP - 1) // GROUP)
    starts = np.empty(px, np.int64)
    weights = np.zeros((px, num), np.float32)
    for i in range(px):
        center = (i + 0.5) * scale
        first = int(np.floor(center - reach + 0.5))
        start = min(max(first, 0), max(side - num, 0))
        total = 0.0
        for k in range(first, first + num):
            total += max(0.0, 1.0 - abs(k + 0.5 - center) / reach)
        for k in range(first, first + num):
            weight = max(0.0, 1.0 - abs(k + 0.5 - center) / reach)
            weights[i, min(max(k, 0), side - 1) - start] += np.float32(weight / total)
        starts[i] = start
    return starts, weights
