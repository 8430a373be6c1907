"""The gate: one verdict for the bytes of one image, and what a shard stores of it.

In order: size limits; format by content; limits on what the header declares, before a pixel is
allocated; one strict decode; filters; encoding, unless the image is stored unchanged. Runs where a
decoder may crash or hang: see `sandbox`.
"""

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.decoded import Decoded, RefusedError
from pipeline.ingest.gate.encode import encoded, resized, stored_size, thumbnail
from pipeline.ingest.gate.formats import sniff
from pipeline.ingest.gate.jpeg import decode_jpeg
from pipeline.ingest.gate.pillow import decode_by_pillow
from pipeline.ingest.item import Reason, Verdict

_MAX_SPREAD = 2  # of 255, in every channel of an image of one colour
_MAX_LUMA_SPREAD = 81
"""Upper bound for the luma of a JPEG of one colour by that rule: colours beyond RGB's bounds are
clipped (a green of 255 may have a luma of 134 or less), luma never is."""
_MAX_TEXT = 200  # characters of an error's text in the ledger
_STEPS = (16, 1)  # px between sampled pixels, in the order tried


def judge(data: bytes, config: ShardConfig) -> Verdict:
    """Judge the bytes of an input; never raises because of their content.

    Equal bytes give equal verdicts.
    """
    if len(data) > config.max_bytes:
        return Verdict("quarantined", "too_big")
    content_hash = hash_content(data)
    if not data:
        return Verdict("quarantined", "empty", content_hash)
    image_format, junk = sniff(data)
    if not image_format:
        return Verdict("quarantined", "not_image", content_hash)
    try:
        decoded = _decode(data, image_format, junk, config)
        reason = _filter_reason(decoded, config)
        if reason is None:
            return _accepted(content_hash, image_format, decoded, config)
        small = thumbnail(decoded.in_colour())
    except RefusedError as error:
        return Verdict("quarantined", error.reason, content_hash, image_format)
    except MemoryError:  # Ends the process, and is tried again in another.
        raise
    except Exception as error:  # What libraries raise beyond what they document.
        notes = (f"{type(error).__name__}: {error}"[:_MAX_TEXT],)
        return Verdict("quarantined", "undecodable", content_hash, image_format, notes=notes)
    return Verdict(
        "filtered",
        reason,
        content_hash,
        image_format,
        decoded.width,
        decoded.height,
        tuple(decoded.notes),
        thumbnail=small,
    )


def hash_content(data: bytes) -> str:
    """Return the xxh3 (128 bit) of an input's bytes, hex."""
    return xxhash.xxh3_128_hexdigest(data)


def decode(data: bytes, config: ShardConfig) -> Decoded:
    """Decode an image of any allowed format, strictly and upright.

    Raises:
        RefusedError: It is no image, or does not decode.
    """
    image_format, junk = sniff(data)
    if not image_format:
        raise RefusedError("not_image")
    try:
        return _decode(data, image_format, junk, config)
    except (RefusedError, MemoryError):
        raise
    except Exception as error:  # What libraries raise beyond what they document.
        raise RefusedError("undecodable") from error


def _decode(data: bytes, image_format: str, junk: int, config: ShardConfig) -> Decoded:
    if image_format != "JPEG":
        return decode_by_pillow(data, image_format, config)
    decoded = decode_jpeg(data[junk:], config)
    if junk:
        decoded.notes.append("leading_bytes")
    return decoded


def _filter_reason(decoded: Decoded, config: ShardConfig) -> Reason | None:
    short, long = sorted((decoded.width, decoded.height))
    if short < config.min_side:
        return "min_side"
    if long > config.max_aspect * short:
        return "max_aspect"
    if decoded.decode_colours is not None and not _is_plain(decoded.pixels, _MAX_LUMA_SPREAD):
        return None
    return "low_information" if _is_plain(decoded.in_colour(), _MAX_SPREAD) else None


def _is_plain(pixels: NDArray[np.uint8], max_spread: int) -> bool:
    """Tell whether no channel varies by more; usually a few pixels show that one does."""
    for step in _STEPS:
        samples = pixels[::step, ::step].reshape(-1, pixels.shape[2])
        if (samples.max(axis=0) - samples.min(axis=0)).max() > max_spread:
            return False
    return True


def _accepted(
    content_hash: str, image_format: str, decoded: Decoded, config: ShardConfig
) -> Verdict:
    size = decoded.width, decoded.height
    width, height = stored_size(*size, config.max_side)
    # Where the image is stored unchanged, the pixels only feed the near-duplicate hash.
    pixels = decoded.pixels if decoded.verbatim else resized(decoded.pixels, (width, height))
    if (width, height) != size:
        decoded.notes.append("reduced")
    return Verdict(
        "accepted",
        None,
        content_hash,
        image_format,
        *size,
        tuple(decoded.notes),
        stored=decoded.verbatim or encoded(pixels, config),
        stored_width=width,
        stored_height=height,
        as_is=bool(decoded.verbatim),
        near_words=_near_words(pixels, size, decoded.scale) if config.near_duplicates else None,
    )


def _near_words(pixels: NDArray[np.uint8], size: tuple[int, int], scale: int) -> NDArray[np.uint64]:
    from pipeline.ingest.gate.kernels import luma  # Numba takes half a second to load.
    from pipeline.ingest.near.hash import near_words

    return near_words(luma(pixels), size[::-1] if scale > 1 else None, scale)
