"""Tell an image's format by its first bytes; file names lie."""

_IMAGE_PREFIXES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"II+\0", b"MM\0+"),
)
_IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def is_image(start: bytes) -> bool:
    """Tell whether bytes begin as an image of a known format does; 16 of them are enough.

    >>> is_image(b"RIFF....WEBPVP8 "), is_image(b"BMW and other cars")
    (True, False)
    """
    return (
        start.startswith(_IMAGE_PREFIXES)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4))  # Reserved, and zero.
        or (start[4:8] == b"ftyp" and start[8:12] in _IMAGE_BRANDS)
    )


_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
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
_GENERAL_BRANDS = (b"mif1", b"msf1")  # of HEIF with any codec: what fits comes behind them.
_TAR_BLOCK = 512
_CONTAINERS = (
    *(b"%", b"<"),  # PDF and PostScript; HTML and SVG
    *(b"PK", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd"),
    *(b"WARC/", b"filedesc:", b"PAR1", b"ARROW1", b"SQLite", b"RIFF", b"ID3", b"\0\0\1\0"),
)
_MAX_JUNK = 1024
"""Bytes before the start of a JPEG that are skipped; damaged downloads carry headers of HTTP."""


def sniff(data: bytes) -> tuple[str, int]:
    """Find the format and where it starts.

    Returns:
        The name of a format of the allow-list, empty where it is none, and the number of bytes
        before it, 0 but for JPEGs behind junk.
    """
    for magic, image_format in _MAGIC:
        if data.startswith(magic):
            return image_format, 0
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", 0
    if data[4:8] == b"ftyp":
        return _brand(data), 0
    junk = data.find(b"\xff\xd8\xff", 0, _MAX_JUNK + 3)
    return ("JPEG", junk) if junk > 0 and not _is_container(data[:junk]) else ("", 0)


def _brand(data: bytes) -> str:
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[start : start + 4] for start in range(16, size, 4))]
    if brands[0] not in _GENERAL_BRANDS:
        return _BRANDS.get(brands[0], "")
    return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "")


def _is_container(junk: bytes) -> bool:
    """Whether what stands before a JPEG is another format that holds it: an archive, a document."""
    is_tar = junk[257:262] == b"ustar" or len(junk) % _TAR_BLOCK == 0  # The oldest have no mark.
    return is_tar or junk.lstrip().startswith(_CONTAINERS)
