"""Walk a tar in passing, whatever state it is in: members that are whole, places that are not."""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.ingest.item import Reason
from pipeline.ingest.sources.decompress import DecompressError, Unpacked
from pipeline.ingest.sources.names import is_unsafe
from pipeline.shards.tar import decode_name, parse_pax

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_MAX_EXTENSION = 2**20  # bytes; real ones have some hundred
_PAX, _LONG_NAME = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME
_EXTENSIONS = (_PAX, tarfile.XGLTYPE, _LONG_NAME, tarfile.GNUTYPE_LONGLINK, tarfile.SOLARIS_XHDTYPE)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NO_BODY = (b"1", b"2", b"3", b"4", b"5", b"6", b"V")  # links, devices, folders, pipes, the label
_SILENT = (tarfile.DIRTYPE, b"V")


@dataclass(frozen=True, slots=True)
class StreamMember:
    """A member of an archive, or a damaged place of it."""

    name: str | None
    """As it stands in the archive; None for a place."""
    offset: int
    """First byte of it, unpacked."""
    data: bytes = b""
    problem: Reason | None = None


@dataclass(slots=True)
class _State:
    """What the walk has seen."""

    wants: Callable[[str], bool]
    max_bytes: int
    extra: dict[str, str] = field(default_factory=dict)
    """What extension headers say of the next member: path, size, sparse, broken."""
    start: int = 0
    """Of the next member: its first header."""
    is_lost: bool = False
    """Whether the last block was none that a header could be."""
    has_ended: bool = False
    """Whether the last block was the end mark."""

    def begin(self, offset: int) -> None:
        """Come to the next header, which may be the first of a member."""
        if not self.extra:
            self.start = offset

    def miss(self, block: bytes) -> bool:
        """Take in a block that is no header; tells whether that is damage, not named yet."""
        is_damage = bool(self.extra) if block == _ZEROS else not self.is_lost
        self.has_ended = self.has_ended or block == _ZEROS
        self.is_lost = self.is_lost or block != _ZEROS
        self.extra = {}
        return is_damage

    def is_cut(self, error: DecompressError) -> bool:
        """Tell whether the end of the bytes is damage, not named yet."""
        is_early = error.is_broken or error.num_bytes or not self.has_ended
        return bool(is_early) and not self.is_lost


def read_members(
    tar: Unpacked, wants: Callable[[str], bool], max_bytes: int
) -> Iterator[StreamMember]:
    """Yield the regular files of a tar in order, and what is wrong with it in between.

    Behind a damaged place the next header that is right is looked for. Links, devices, sparse
    files and names that lead out of the folder are members with a problem; folders are none. A
    tar behind the end of another one is read on.

    Args:
        tar: At its first header.
        wants: Tells by its name whether a member's data are read; others come without.
        max_bytes: Members that are larger are passed over.
    """
    state = _State(wants, max_bytes)
    while not tar.is_at_stop():
        state.begin(tar.offset)
        try:
            block = tar.read(_BLOCK)
        except DecompressError as error:
            if state.is_cut(error):
                yield StreamMember(None, state.start, problem="bad_record")
            return
        info, behind = _parse(block, strict=state.is_lost), tar.offset
        if info is None:
            if state.miss(block):
                yield StreamMember(None, state.start, problem="bad_record")
            continue
        state.is_lost = state.has_ended = False
        try:
            yield from _read_one(tar, info, block, state)
        except DecompressError as error:
            yield StreamMember(None, state.start, problem="bad_record")
            state.extra, state.is_lost = {}, True
            if not tar.rewind(behind, error):
                return


def _parse(block: bytes, *, strict: bool) -> tarfile.TarInfo | None:
    """Read a header; None where it is none. Behind damage only what calls itself one is taken."""
    if strict and block[257:262] != b"ustar":
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    return info if info.size >= 0 else None


def _read_one(
    tar: Unpacked, info: tarfile.TarInfo, block: bytes, state: _State
) -> Iterator[StreamMember]:
    """Take in a header and what belongs to it; raises DamageError where that is cut."""
    if info.type in _EXTENSIONS:
        _read_extension(tar, info, state)
        return
    extra, state.extra = state.extra, {}
    name = extra.get("path", info.name)
    if info.type not in _FILES:
        _pass_over(tar, info, block)
        if info.type not in _SILENT:
            yield StreamMember(name, state.start, problem="bad_record")
        return
    size = int(extra.get("size", info.size))
    tar.check_room(size)
    if "broken" in extra or "sparse" in extra or is_unsafe(name):
        tar.skip(_padded(size))
        yield StreamMember(name, state.start, problem="bad_record")
    elif not state.wants(name):
        tar.skip(_padded(size))
        yield StreamMember(name, state.start)
    elif size > state.max_bytes:
        tar.skip(_padded(size))
        yield StreamMember(name, state.start, problem="too_big")
    else:
        data = tar.read(size)
        tar.skip(_padded(size) - size)
        yield StreamMember(name, state.start, data, None if size else "empty")


def _pass_over(tar: Unpacked, info: tarfile.TarInfo, block: bytes) -> None:
    is_extended = info.type == tarfile.GNUTYPE_SPARSE and block[482]
    while is_extended:
        is_extended = tar.read(_BLOCK)[504]
    if info.type not in _NO_BODY:
        tar.skip(_padded(info.size))


def _read_extension(tar: Unpacked, info: tarfile.TarInfo, state: _State) -> None:
    tar.check_room(info.size)
    if info.size > _MAX_EXTENSION:
        tar.skip(_padded(info.size))
        state.extra["broken"] = ""
        return
    body = tar.read(_padded(info.size))[: info.size]
    state.extra["seen"] = ""  # The member begins with this header.
    if info.type in (_PAX, tarfile.SOLARIS_XHDTYPE):
        state.extra.update(parse_pax(body))
    elif info.type == _LONG_NAME:
        state.extra["path"] = decode_name(body)


def _padded(size: int) -> int:
    return (size + _BLOCK - 1) // _BLOCK * _BLOCK
