"""Tell images from anything else by their first bytes."""

_PREFIXES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\xff\x0a", b"\0\0\0\x0cJXL ", b"\0\0\0\x0cjP  ", b"II+\0", b"MM\0+"),
)
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


def is_image(start: bytes) -> bool:
    """Tell whether bytes begin as an image of a known format does; 16 of them are enough.

    >>> is_image(b"RIFF....WEBPVP8 "), is_image(b"BMW and other cars")
    (True, False)
    """
    return (
        start.startswith(_PREFIXES)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[:2] == b"BM" and start[6:10] == bytes(4))  # Reserved, and zero.
        or (start[4:8] == b"ftyp" and start[8:12] in _BRANDS)
    )
