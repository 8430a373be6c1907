"""The decoder that trains, one image at a time, on the CPU: the gate's second opinion."""

import functools

import numpy as np
from numpy.typing import NDArray
from nvidia import nvimgcodec

from pipeline.dali.webp import decodable


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


def decode_rgb(data: bytes) -> NDArray[np.uint8] | None:
    """Decode an encoded image with the codec library that DALI decodes with.

    Returns:
        uint8 (H, W, 3), EXIF orientation applied, or None where the decoder refuses the image.
    """
    image = _decoder().decode(decodable(np.frombuffer(data, np.uint8)))
    return None if image is None else np.asarray(image)


@functools.cache
def _decoder() -> nvimgcodec.Decoder:
    # Without a list of backends every image fails on a machine without a GPU.
    cpu = nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)
    return nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[cpu], max_num_cpu_threads=1
    )
