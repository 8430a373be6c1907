"""Zips as sources: every regular member is an input."""

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace

from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.files import InputError, open_archive
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import Names, folder_label, is_unsafe
from pipeline.remote.location import is_remote

_MAX_PARTS = 64
"""Parts of one zip; each reads the central directory again."""
_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, NotImplementedError, RuntimeError),  # Names, methods, passwords.
)
_ENCRYPTED = 1


def cut_zip(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a local zip into runs of members; a remote or damaged one stays whole."""
    if is_remote(whole.root) or not whole.file.size:
        return [whole]
    try:
        with open_archive(whole) as opened, zipfile.ZipFile(opened) as archive:
            members = archive.infolist()
    except (InputError, *_ERRORS):
        return [whole]
    run = max(chunk_inputs, -(-len(members) // _MAX_PARTS))
    firsts = range(0, max(1, len(members)), run)
    names = Names()
    return [_part(whole, members[first : first + run], first, names) for first in firsts]


def _part(whole: Chunk, members: list[zipfile.ZipInfo], first: int, names: Names) -> Chunk:
    wanted = [name for _, name in _wanted(whole, members)]
    unique = [names.take(name) for name in wanted]
    renamed = [(i, name) for i, name in enumerate(unique) if name != wanted[i]]
    stop = first + len(members)
    return replace(whole, first=first, stop=stop, names=tuple(renamed), num_inputs=len(wanted))


def read_zip(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the members of a zip or of a part of one.

    Links, encrypted members and names that lead out of the folder are problems. At most
    `max_bytes` of a member are read whatever its header says, and its CRC is checked.
    """
    number = chunk.first
    try:
        if chunk.file.size == 0:
            raise InputError("empty")
        with open_archive(chunk) as opened, zipfile.ZipFile(opened) as archive:
            names = Names(chunk.names)
            members = archive.infolist()[chunk.first : chunk.stop]
            for i, (member, name) in enumerate(_wanted(chunk, members), 1):
                label = folder_label(chunk.path_of(name))
                result = _load(archive, member, max_bytes)
                yield Item.make(names.take(name), result, label=label, is_inferred=True)
                number = chunk.first + i
    except InputError as error:
        yield chunk.problem(number, error.reason)
    except _ERRORS:
        yield chunk.problem(number, "bad_record")


def _wanted(chunk: Chunk, members: list[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Yield the members that are inputs, with names that need not be unique."""
    for member in members:
        name = chunk.member(member.filename)
        if not member.is_dir() and chunk.wants(name):
            yield member, name


def _load(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes | Reason:
    mode = member.external_attr >> 16
    is_regular = stat.S_ISREG(mode) or not stat.S_IFMT(mode)
    if not is_regular or member.flag_bits & _ENCRYPTED or is_unsafe(member.filename):
        return "bad_record"
    if member.file_size > max_bytes:
        return "too_big"
    try:
        with archive.open(member) as opened:
            data = opened.read(max_bytes + 1)  # To its end: only there the CRC is checked.
    except _ERRORS as error:
        return "unreadable" if isinstance(error, OSError) and error.errno else "bad_record"
    if len(data) != member.file_size:
        return "bad_record"
    return data or "empty"
