"""Zips as sources: every regular member is an input."""

import lzma
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.files import InputError, open_archive
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import Names, is_unsafe
from pipeline.ingest.sources.samples import NoteCounter
from pipeline.remote.location import is_remote
from pipeline.shards.members import MAX_NOTE_BYTES, Gathered, Input, borders, gather

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
    firsts = [0]
    for border in borders(_gather(members)):
        if border - firsts[-1] >= run:
            firsts.append(border)
    names = Names()
    ends = [*firsts[1:], len(members)]
    return [
        _part(whole, members[first:stop], first, names)
        for first, stop in zip(firsts, ends, strict=True)
    ]


def _part(whole: Chunk, members: list[zipfile.ZipInfo], first: int, names: Names) -> Chunk:
    wanted = [name for _, name in _wanted(whole, members, _gather(members))]
    unique = [names.take(name) for name in wanted]
    renamed = [(i, name) for i, name in enumerate(unique) if name != wanted[i]]
    stop = first + len(members)
    return replace(whole, first=first, stop=stop, names=tuple(renamed), num_inputs=len(wanted))


def read_zip(chunk: Chunk, max_bytes: int, dropped: Counter[str] | None = None) -> Iterator[Item]:
    """Read the members of a zip or of a part of one.

    Links, encrypted members and names that lead out of the folder are problems. At most
    `max_bytes` of a member are read whatever its header says, and its CRC is checked.

    Args:
        chunk: The zip, or a part of it.
        max_bytes: Larger inputs come without bytes.
        dropped: Counts the members that are no inputs and say nothing.
    """
    number = chunk.first
    notes = NoteCounter(chunk, Counter() if dropped is None else dropped)
    try:
        if chunk.file.size == 0:
            raise InputError("empty")
        with open_archive(chunk) as opened, zipfile.ZipFile(opened) as archive:
            names = Names(chunk.names)
            members = archive.infolist()[chunk.first : chunk.stop]
            gathered = _gather(members)
            notes.count(gathered, [member.filename for member in members])
            for one, name in _wanted(chunk, members, gathered):
                contents = {}
                for ending, place in one.notes.items():
                    note = _load(archive, members[place], MAX_NOTE_BYTES)
                    if note == "empty":
                        note = b""
                    if isinstance(note, bytes):
                        contents[ending] = note
                    else:
                        notes.lose(place, "too_big" if note == "too_big" else "unreadable")
                said = notes.read(name, one, contents)
                loaded = _load(archive, members[one.place], max_bytes)
                yield Item.make(names.take(name), loaded, **said)
                number = chunk.first + one.place + 1
    except InputError as error:
        yield chunk.problem(number, error.reason)
    except _ERRORS:
        yield chunk.problem(number, "bad_record")


def _gather(members: list[zipfile.ZipInfo]) -> Gathered:
    """Join the members into samples; folders and what cannot be read stand alone."""
    return gather([member.filename if _is_plain(member) else None for member in members])


def _is_plain(member: zipfile.ZipInfo) -> bool:
    mode = member.external_attr >> 16
    is_regular = stat.S_ISREG(mode) or not stat.S_IFMT(mode)
    is_readable = is_regular and not member.flag_bits & _ENCRYPTED
    return is_readable and not member.is_dir() and not is_unsafe(member.filename)


def _wanted(
    chunk: Chunk, members: list[zipfile.ZipInfo], gathered: Gathered
) -> Iterator[tuple[Input, str]]:
    """Yield the members that are inputs, with names that need not be unique."""
    for one in gathered.inputs():
        member = members[one.place]
        name = chunk.member(member.filename)
        if not member.is_dir() and chunk.wants(name):
            yield one, name


def _load(archive: zipfile.ZipFile, member: zipfile.ZipInfo, max_bytes: int) -> bytes | Reason:
    if not _is_plain(member):
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
