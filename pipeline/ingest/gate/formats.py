"""Tell an image's format by its first bytes; file names lie."""

SOI, EOI, SOS = 0xD8, 0xD9, 0xDA
"""Second bytes of the markers of a JPEG: start, end, start of coded data."""
_PREFIXES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_BMP = b"BM"
_REFUSED_PREFIXES = (  # JPEG XL, JPEG 2000, BigTIFF
    *(b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"II+\0", b"MM\0+"),
)
_BRANDS = {  # of ISO base media files
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
}
_GENERIC_BRANDS = (b"mif1", b"msf1")  # HEIF of any codec: the compatible brands after it decide.
_TAR_BLOCK = 512
_CONTAINERS = (
    *(b"%", b"<"),  # PDF and PostScript; HTML and SVG
    *(b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"),
    *(b"WARC/", b"filedesc:", b"PAR1", b"ARROW1", b"SQLite", b"RIFF", b"ID3", b"\0\0\1\0"),
)
_MAX_JUNK = 1024
"""Bytes skipped before the start of a JPEG; damaged downloads begin with HTTP headers."""


def is_image(start: bytes) -> bool:
    """Tell whether bytes begin like an image, allowed or not; 16 of them are enough.

    >>> is_image(b"RIFF....WEBPVP8 "), is_image(b"BMW and other cars")
    (True, False)
    """
    return (
        start.startswith((*_PREFIXES, *_REFUSED_PREFIXES))
        or _is_webp(start)
        or (start.startswith(_BMP) and start[6:10] == bytes(4))  # Reserved, and zero.
        or (start[4:8] == b"ftyp" and start[8:12] in (*_BRANDS, *_GENERIC_BRANDS))
    )


def sniff(data: bytes) -> tuple[str, int]:
    """Find the format and where it starts.

    Returns:
        The name of an allowed format, empty if it is none, and the number of bytes before it: 0
        except for JPEGs after junk.
    """
    for prefix, image_format in _PREFIXES.items():
        if data.startswith(prefix):
            return image_format, 0
    if data.startswith(_BMP):
        return "BMP", 0
    if _is_webp(data):
        return "WEBP", 0
    if data[4:8] == b"ftyp":
        return _format_of_brand(data), 0
    junk = data.find(b"\xff\xd8\xff", 0, _MAX_JUNK + 3)
    return ("JPEG", junk) if junk > 0 and not _is_container(data[:junk]) else ("", 0)


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _format_of_brand(data: bytes) -> str:
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, size, 4))]
    if brands[0] not in _GENERIC_BRANDS:
        return _BRANDS.get(brands[0], "")
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "")


def _is_container(junk: bytes) -> bool:
    """Tell whether what precedes a JPEG is a format that embeds it: an archive, a document."""
    is_tar = junk[257:262] == b"ustar" or len(junk) % _TAR_BLOCK == 0  # Pre-POSIX: no magic.
    return is_tar or junk.lstrip().startswith(_CONTAINERS)
