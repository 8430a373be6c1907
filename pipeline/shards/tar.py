"""Walk the headers of a tar: the offset of every member, and a clear error on damage."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_FILE_TYPES = (b"0", b"\0")
_FOLDER = b"5"
_PAX, _GNU_NAME = b"x", b"L"
_EXTENSIONS = (_PAX, b"g", _GNU_NAME, b"K")  # PAX for the next member, PAX for all, GNU names
_MAX_EXTENSION = 2**20  # bytes; real ones have a few hundred
_AT_ONCE = 1024  # headers verified together: half a megabyte fits the CPU cache
_DIGITS = np.arange(18, -1, -3, dtype=np.int32)  # shifts of a checksum's seven octal digits
_read_length = re.compile(rb"(\d{1,7}) ").match
_find_record = re.compile(rb"path=|size=|GNU\.sparse\.").search
_read_fields = struct.Struct("124x12s20xc355x").unpack_from  # size and type of a header


class ShardError(ValueError):
    """A damaged shard; the message names the shard and the byte offset."""


def shard_error(shard: str, offset: int, what: str) -> ShardError:
    """Make the error for damage `what` at a byte offset."""
    return ShardError(f"shard (={shard}) is damaged at byte {offset}: {what}. Shard again.")


class Member(NamedTuple):  # A dataclass takes five times as long to create.
    """One regular file of a tar."""

    name: str
    start: int
    """First byte that belongs to it in the tar: its header, or an extension header before it."""
    offset: int
    """First byte of its content in the tar."""
    size: int
    """Bytes of its content."""


class _DamageError(Exception):
    def __init__(self, offset: int, what: str) -> None:
        self.offset, self.what = offset, what


@dataclass(slots=True)
class _Trail:
    """Where the sizes in the headers led, in tar order; not verified yet."""

    headers: list[int] = field(default_factory=list)
    """Offset of every header."""
    files: list[int] = field(default_factory=list)
    """Position in `headers` of every regular file's."""
    starts: list[int] = field(default_factory=list)
    """First byte that belongs to each file."""
    sizes: list[int] = field(default_factory=list)
    """Bytes of each file."""
    names: dict[int, str] = field(default_factory=dict)
    """Names given by extensions, by position in `headers`."""
    pending: dict[str, str] = field(default_factory=dict)
    """Fields of the next member set by extensions: path, size."""


def walk_tar(buffer: memoryview, shard: str, *, is_part: bool = False) -> Iterator[Member]:
    """List the regular files of a tar in order; reads only headers, and verifies every one.

    Directories are skipped; PAX and GNU long-name headers apply to the member they precede.

    Args:
        buffer: uint8, the whole tar.
        shard: Named in errors.
        is_part: Whether it is a part of a tar, which may end behind any member.

    Raises:
        ShardError: A header checksum is wrong, a member is truncated or of another type (a link, a
            device), the end marker is missing, or data follows it. Names the first such place.
    """
    trail = _Trail()
    damage: _DamageError | None = None
    try:
        _follow(buffer, trail, is_part=is_part)
    except _DamageError as error:
        damage = error
    try:  # A corrupt size leads astray: blame the header that holds it.
        names = _verify(buffer, trail)
    except _DamageError as error:
        damage = error
    if damage is not None:
        raise shard_error(shard, damage.offset, damage.what)
    files = np.array(trail.files, np.int64)
    offsets = (np.array(trail.headers, np.int64)[files] + _BLOCK).tolist()
    return map(Member._make, zip(names, trail.starts, offsets, trail.sizes, strict=True))


def _follow(buffer: memoryview, trail: _Trail, *, is_part: bool) -> None:
    """Follow the sizes from header to header up to the end marker."""
    end = len(buffer)
    offset = first = 0
    headers, files, starts, sizes = trail.headers, trail.files, trail.starts, trail.sizes
    while offset + _BLOCK <= end:
        size_field, kind = _read_fields(buffer, offset)
        try:
            size = int(size_field.rstrip(b"\0"), 8)
        except ValueError:
            if buffer[offset : offset + _BLOCK] == _ZEROS:
                return _check_end(buffer, offset)
            size = _unusual_size(size_field)
        headers.append(offset)
        is_file = kind in _FILE_TYPES
        if is_file and trail.pending:
            size = _apply_pending(trail, size)
        body = offset + _BLOCK
        following = body + ((size + 511) & -512)
        if size < 0 or body + size > end:
            raise _bad_size(buffer, trail, size)
        if is_file:
            files.append(len(headers) - 1)
            starts.append(first)
            sizes.append(size)
            first = following
        # Most PAX headers hold only a time: skipping those makes the walk fast.
        elif kind != _PAX or size > _MAX_EXTENSION or _find_record(buffer, body, body + size):
            is_extension = _read_special(buffer, offset, size, kind, trail)
            first = first if is_extension else following
        offset = following
    _check_cut(offset, end, is_part=is_part)


def _unusual_size(size_field: bytes) -> int:
    """Read GNU's binary form for 8 GiB and more, or an empty field; -1 for anything else."""
    if size_field[0] == 0x80:
        return int.from_bytes(size_field[1:], "big")
    digits = size_field.strip(b" \0")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else -1


def _bad_size(buffer: memoryview, trail: _Trail, size: int) -> _DamageError:
    offset = trail.headers[-1]
    trail.names.pop(len(trail.headers) - 1, None)  # Its name is of no file on the trail.
    if size < 0:
        return _DamageError(offset, "the size is not a number")
    return _DamageError(offset, f"member {_name_at(buffer, offset)!r} is truncated")


def _name_at(buffer: memoryview, offset: int) -> str:
    return _full_name(bytes(buffer[offset : offset + _BLOCK]))


def _check_end(buffer: memoryview, offset: int) -> None:
    if np.frombuffer(buffer[offset:], np.uint8).any():
        raise _DamageError(offset, "data follows the end marker")


def _check_cut(offset: int, end: int, *, is_part: bool) -> None:
    if not is_part or offset != end:
        raise _DamageError(offset, "the tar has no end marker")


def _apply_pending(trail: _Trail, size: int) -> int:
    """Apply pending extensions to the file whose header was read last; returns its size."""
    pending, trail.pending = trail.pending, {}
    if "path" in pending:
        trail.names[len(trail.headers) - 1] = pending["path"]
    return int(pending.get("size", size))


def _read_special(buffer: memoryview, offset: int, size: int, kind: bytes, trail: _Trail) -> bool:
    """Read a header that is not of a file; returns whether it belongs to the next member."""
    if kind == _FOLDER:
        trail.pending = {}
        return False
    if kind not in _EXTENSIONS:
        raise _DamageError(offset, f"member {_name_at(buffer, offset)!r} is not a regular file")
    if size > _MAX_EXTENSION:
        raise _DamageError(offset, f"an extension header of {size} bytes is too large")
    body = bytes(buffer[offset + _BLOCK : offset + _BLOCK + size])
    if kind == _PAX:
        said = parse_pax(body)
        if "broken" in said:
            raise _DamageError(offset, "the PAX header is malformed")
        if "sparse" in said:
            raise _DamageError(offset, "the member is a sparse file")
        trail.pending.update(said)
    elif kind == _GNU_NAME:
        trail.pending["path"] = decode_name(body)
    return True


def parse_pax(body: bytes) -> dict[str, str]:
    """Read the body of a PAX header, whose records are lines of "length key=value".

    Returns:
        `path` and `size` if present, `sparse` for a sparse file, and `broken` if malformed, after
        which nothing is read.
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(body):
        head = _read_length(body, position)
        end = position + int(head[1]) if head else 0
        if head is None or not head.end() < end <= len(body):
            return {**found, "broken": ""}
        key, _, value = body[head.end() : end - 1].partition(b"=")
        if key == b"path":
            found["path"] = decode_name(value)
        elif key == b"size":
            if not value.isdigit() or len(value) > 19:
                return {**found, "broken": ""}
            found["size"] = value.decode()
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = ""
        position = end
    return found


def _verify(buffer: memoryview, trail: _Trail) -> list[str]:
    """Verify the checksum of every header on the trail; returns the file names."""
    if not trail.headers:
        return []
    blocks = np.frombuffer(buffer, np.uint8, len(buffer) // _BLOCK * _BLOCK).reshape(-1, _BLOCK)
    rows = np.array(trail.headers, np.int64) // _BLOCK
    files = np.array(trail.files, np.int64)
    names: list[str] = []
    for start in range(0, len(rows), _AT_ONCE):
        headers = blocks[rows[start : start + _AT_ONCE]]
        right = _are_checksums_right(headers)
        if not right.all():
            offset = trail.headers[start + int(right.argmin())]
            raise _DamageError(offset, "the header checksum is wrong")
        first, last = np.searchsorted(files, (start, start + _AT_ONCE))
        names += _read_names(headers[files[first:last] - start])
    for position, name in trail.names.items():
        names[int(np.searchsorted(files, position))] = name
    return names


def _are_checksums_right(headers: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Compare the stored checksum of uint8 (N, 512) headers with the sum of their bytes.

    The field must hold what writers emit: six digits and NUL space or space NUL, or seven digits
    and NUL. A reader that treats blanks as zeros misses a flipped bit there.

    Returns:
        bool (N,).
    """
    stored = headers[:, 148:156]
    total = headers.sum(axis=1, dtype=np.int32) - stored.sum(axis=1, dtype=np.int32) + 8 * ord(" ")
    expected = (ord("0") + ((total[:, None] >> _DIGITS) & 7)).astype(np.uint8)
    end, last = stored[:, 6], stored[:, 7]
    blank = ((end == 0) & (last == ord(" "))) | ((end == ord(" ")) & (last == 0))
    six = (stored[:, :6] == expected[:, 1:]).all(axis=1) & blank
    seven = (stored[:, :7] == expected).all(axis=1) & (last == 0)
    right: NDArray[np.bool_] = six | seven
    return right


def _read_names(headers: NDArray[np.uint8]) -> list[str]:
    """Read the names in uint8 (N, 512) headers."""
    fields = np.ascontiguousarray(headers[:, :100]).view("S100")[:, 0].tolist()
    joined = b"\n".join(fields)  # Decoding them together is six times as fast.
    if b"\0" in joined or joined.count(b"\n") >= len(fields):
        names = [decode_name(field) for field in fields]
    else:
        names = joined.decode("utf-8", "surrogateescape").split("\n")
    for row in np.flatnonzero(headers[:, 345]).tolist():
        names[row] = _full_name(headers[row].tobytes())
    return names


def _full_name(header: bytes) -> str:
    """Read the name in a header, with the separate prefix of USTAR."""
    name = decode_name(header[:100])
    if header[345] and header[257:263] == b"ustar\0":
        return f"{decode_name(header[345:500])}/{name}"
    return name


def decode_name(field: bytes) -> str:
    """Decode a name up to its first NUL; bytes that are not UTF-8 become surrogates."""
    if b"\0" in field:
        field = field[: field.index(b"\0")]
    return str(field, "utf-8", "surrogateescape")
