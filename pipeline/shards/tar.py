"""Walk the headers of a tar: where each member lies, and a clear error where the tar is damaged."""

from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = 512
_FILE_TYPES = (b"0", b"\0")
_FOLDER = b"5"
_EXTENSIONS = (b"x", b"g", b"L", b"K")  # PAX for the next member, PAX for all, GNU names
_CHECKSUM = slice(148, 156)


class ShardError(ValueError):
    """A shard that is not as it was written; the message names the shard and the byte offset."""


@dataclass(frozen=True, slots=True)
class Member:
    """One regular file of a tar."""

    name: str
    start: int
    """First byte in the tar that belongs to it: its header, or the extension header before that."""
    offset: int
    """First byte of the content in the tar."""
    size: int
    """Bytes of the content."""


@dataclass(frozen=True, slots=True)
class _Header:
    name: str
    kind: bytes
    size: int


def walk_tar(buffer: memoryview, shard: str) -> Iterator[Member]:
    """Yield the regular files of a tar in order; reads headers only.

    Directories are skipped, PAX and GNU long-name headers are applied to the member they precede.

    Args:
        buffer: uint8, the whole tar.
        shard: Named in errors.

    Raises:
        ShardError: A header checksum is wrong, a member is cut or of another type (a link, a
            device), the end mark is missing, or something follows it.
    """
    offset = first = 0
    override: dict[str, str] = {}  # path and size for the next member
    while True:
        header = _read_header(buffer, offset, shard)
        if header is None:
            return _check_end(buffer, offset, shard)
        start = offset + _BLOCK
        is_file = header.kind in _FILE_TYPES
        size = int(override.get("size", header.size)) if is_file else header.size
        if start + size > len(buffer):
            raise _damage(shard, offset, f"member {header.name!r} is cut")
        if is_file:
            yield Member(override.get("path", header.name), first, start, size)
            override = {}
        elif header.kind in _EXTENSIONS:
            override |= _read_extension(header.kind, buffer[start : start + size], shard, offset)
        elif header.kind == _FOLDER:
            override = {}
        else:
            raise _damage(shard, offset, f"member {header.name!r} is no regular file")
        offset = start + -(-size // _BLOCK) * _BLOCK
        if header.kind not in _EXTENSIONS:
            first = offset


def _read_extension(kind: bytes, content: memoryview, shard: str, offset: int) -> dict[str, str]:
    """Read what an extension header says about the name and size of the next member."""
    if kind == b"x":
        return _parse_pax(content, shard, offset)
    if kind == b"L":
        return {"path": _text(bytes(content))}
    return {}  # Defaults for all members and targets of links name no file of ours.


def _read_header(buffer: memoryview, offset: int, shard: str) -> _Header | None:
    """Read one header; None at the block of zeros that ends the tar."""
    block = bytes(buffer[offset : offset + _BLOCK])
    if len(block) < _BLOCK:
        raise _damage(shard, offset, "the tar ends without its end mark")
    if not block.strip(b"\0"):
        return None
    stored = _number(block[_CHECKSUM])
    if stored != sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" "):
        raise _damage(shard, offset, "the header checksum is wrong")
    size = _number(block[124:136])
    if size is None:
        raise _damage(shard, offset, "the size is no number")
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    return _Header(name, block[156:157], size)


def _check_end(buffer: memoryview, offset: int, shard: str) -> None:
    if bytes(buffer[offset:]).strip(b"\0"):
        raise _damage(shard, offset, "something follows the end mark")


def _parse_pax(content: memoryview, shard: str, offset: int) -> dict[str, str]:
    """Read `path` and `size` of a PAX header, whose records are "length key=value", a line each."""
    rest, found = bytes(content), {}
    while rest:
        length, _, _ = rest.partition(b" ")
        if not length.isdigit() or not len(length) < int(length) <= len(rest):
            raise _damage(shard, offset, "the PAX header is malformed")
        record = rest[len(length) + 1 : int(length) - 1]
        key, _, value = record.partition(b"=")
        if key in (b"path", b"size"):
            found[_text(key)] = _text(value)
        rest = rest[int(length) :]
    if not found.get("size", "0").isdecimal():
        raise _damage(shard, offset, "the PAX header is malformed")
    return found


def _number(field: bytes) -> int | None:
    """Read an octal number, or GNU's binary form for 8 GiB and more."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _damage(shard: str, offset: int, what: str) -> ShardError:
    return ShardError(f"shard (={shard}) is damaged at byte {offset}: {what}. Shard again.")
