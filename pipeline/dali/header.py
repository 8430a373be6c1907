"""The size of an image as the graph's decoder reads it."""

import numpy as np
from numpy.typing import NDArray
from nvidia import nvimgcodec


def decoded_size(image: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Read height and width with the parser of the codec library that DALI decodes with.

    Takes about 3 microseconds. Where it fails, or gives a size that the planned crop exceeds, DALI
    2.4 must not see the image: in a batch of 32 and more it unwinds while its threads still work
    on the batch, and the process ends by SIGSEGV.

    Args:
        image: uint8 (N,), encoded.

    Returns:
        Height and width in px as stored, whatever EXIF says, or None where they cannot be read.
    """
    try:
        stream = nvimgcodec.CodeStream(image)
        return stream.height, stream.width
    except RuntimeError:
        return None
