"""Arrays in files: as long as the crawl, without its length in memory."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Make an array of zeros in a new .npy file."""
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def release(*arrays: NDArray[Any]) -> None:
    """Take the pages of arrays in files out of this process; the values stay in the files.

    Arrays that are in no file are left alone.
    """
    for array in arrays:
        if isinstance(array.base, mmap.mmap):
            array.base.madvise(mmap.MADV_DONTNEED)
