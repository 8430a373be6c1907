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
from pipeline.ingest.sources.names import Names, folder_label, is_unsafe, member_name, place_name
from pipeline.remote.location import is_remote

_MOST_PARTS = 64
"""Of one zip: each part reads the whole list of members again."""
_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(ValueError, NotImplementedError, RuntimeError),  # Names, methods, passwords.
)
_ENCRYPTED = 1


def cut_zip(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a local zip into runs of members; one that is remote or damaged stays whole."""
    file = whole.files[0]
    if is_remote(whole.root) or not file.size:
        return [whole]
    try:
        with open_archive(whole.location(file), file) as opened, zipfile.ZipFile(opened) as archive:
            members = archive.infolist()
    except (InputError, *_ERRORS):
        return [whole]
    run = max(chunk_inputs, -(-len(members) // _MOST_PARTS))
    firsts = range(0, max(1, len(members)), run)
    names = Names()
    return [_part(whole, members[first : first + run], first, names) for first in firsts]


def _part(whole: Chunk, members: list[zipfile.ZipInfo], first: int, names: Names) -> Chunk:
    wanted = [name for _, name in _wanted(whole, members)]
    taken = [names.take(name) for name in wanted]
    renamed = [(i, name) for i, name in enumerate(taken) if name != wanted[i]]
    stop = first + len(members)
    return replace(whole, first=first, stop=stop, names=tuple(renamed), num_inputs=len(wanted))


def read_zip(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the members of a zip or of a part of one.

    Links, encrypted members and names that lead out of the folder are problems; a member is read
    up to `max_bytes` whatever its header promises, and its CRC is checked.
    """
    file = chunk.files[0]
    archive = chunk.name(file)
    number = chunk.first
    try:
        if file.size == 0:
            raise InputError("empty")
        with open_archive(chunk.location(file), file) as opened, zipfile.ZipFile(opened) as zipped:
            members = zipped.infolist()[chunk.first : chunk.stop]
            names, fixed = Names(), dict(chunk.names)
            for i, (member, name) in enumerate(_wanted(chunk, members)):
                yield _read(zipped, member, fixed.get(i) or names.take(name), max_bytes)
                number = chunk.first + i + 1
    except InputError as error:
        yield Item(place_name(archive, number), problem=error.reason)
    except _ERRORS:
        yield Item(place_name(archive, number), problem="bad_record")


def _wanted(chunk: Chunk, members: list[zipfile.ZipInfo]) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Choose the inputs among members, each with a name that another one may have, too."""
    archive = chunk.name(chunk.files[0])
    for member in members:
        name = member_name(archive, member.filename)
        if not member.is_dir() and chunk.wants(name.removeprefix(f"{archive}!")):
            yield member, name


def _read(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, max_bytes: int) -> Item:
    label = folder_label(member_name("", member.filename)[1:])
    result = _load(zipped, member, max_bytes)
    if isinstance(result, bytes):
        return Item(name, result, label=label)
    return Item(name, problem=result, label=label)


def _load(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes | Reason:
    mode = member.external_attr >> 16
    is_plain = stat.S_ISREG(mode) or not stat.S_IFMT(mode)
    if not is_plain or member.flag_bits & _ENCRYPTED or is_unsafe(member.filename):
        return "bad_record"
    if member.file_size > max_bytes:
        return "too_big"
    try:
        with zipped.open(member) as opened:
            data = opened.read(max_bytes + 1)  # To its end: only there the CRC is compared.
    except _ERRORS as error:
        return "unreadable" if isinstance(error, OSError) and error.errno else "bad_record"
    if len(data) != member.file_size:
        return "bad_record"
    return data or "empty"
