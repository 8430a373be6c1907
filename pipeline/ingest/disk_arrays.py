"""Arrays in files: as long as the crawl, without its length in memory."""

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Make an array of zeros in a new .npy file.

    Raises:
        OSError: The disk has no room for it; found out later, it would end the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            del array  # And its mapping, though the error may be held.
            raise OSError(error.errno, error.strerror, str(path)) from None
    return array


def release(*arrays: NDArray[Any]) -> None:
    """Take the pages of arrays in files out of this process; the values stay in the files.

    Arrays that are in no file are left alone.
    """
    for array in arrays:
        if isinstance(array.base, mmap.mmap):
            array.base.madvise(mmap.MADV_DONTNEED)
