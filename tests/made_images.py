"""Images that tests of the gate make: whole, odd and hostile."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def photo(width=80, height=60, seed=0):
    """A smooth picture without any symmetry."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, image_format="JPEG", **options):
    sink = io.BytesIO()
    image.save(sink, image_format, **options)
    return sink.getvalue()


def turned(orientation, image_format="JPEG", **options):
    """`photo()`, stored turned, with the tag that makes it upright again."""
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # of Image.Transpose
    image = photo()
    if orientation in inverse:
        image = image.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, image_format, exif=exif, **options)


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(*chunks):
    """A PNG of `photo()` with chunks behind its header."""
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def png_that_declares(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG[:8] + header + PNG[33:]


def png_with_bomb_in_text():
    """About 100 kB that unpack to 100 MiB."""
    return png_with(png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (100 << 20))))


def png_of_deep_rgb(image):
    """A PNG of 16 bits a channel, whose high bytes are `image`."""
    rows = (np.asarray(image).astype(np.uint16) * 256 + 77).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    size = struct.pack(">IIBBBBB", *image.size, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return PNG[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def gif_that_declares(width, height):
    """A few bytes with a whole header and a first frame that is too short."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0)
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, width, height, 0)
    return b"GIF89a" + screen + b"\0\0\0\xff\xff\xff" + frame + b"\x02\x02\x4c\x01\0;"


def segment(marker, body):
    """A marker segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_with(*segments):
    """A JPEG of `photo()` with segments in front."""
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def jpeg_with_junk_between_markers():
    """The decoder that trains refuses these bytes."""
    place = JPEG.index(b"\xff\xdb")
    return JPEG[:place] + bytes(3) + JPEG[place:]


def jpeg_of_many_scans(num):
    """A progressive JPEG whose last scan is repeated."""
    whole = encoded(photo(), progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * num + whole[-2:]


def jpeg_that_says(old, new):
    """A JPEG of `photo()` with other bytes in its frame header."""
    place = JPEG.index(b"\xff\xc0")
    return JPEG[:place] + JPEG[place:].replace(old, new, 1)


JPEG = encoded(photo())
PNG = encoded(photo(), "PNG")
