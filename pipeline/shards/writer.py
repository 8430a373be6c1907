"""Write samples into a tar as WebDataset names them: KEY.ENDING, what belongs to a key together."""

import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO


def write_samples(file: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> None:
    """Write a tar; equal samples give equal bytes, on any machine, at any moment.

    They are the bytes that webdataset.TarWriter gives with these constants for owner, mode and
    time. Its package imports torch: seconds, and memory in every process that only writes.

    Args:
        file: Where the tar goes, from its start.
        samples: Of each its key, and its files by ending; these are sorted.
    """
    with tarfile.open(fileobj=file, mode="w") as tar:
        for key, files in samples:
            for ending, data in sorted(files.items()):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size, info.mode = len(data), 0o444
                tar.addfile(info, io.BytesIO(data))
    file.flush()
