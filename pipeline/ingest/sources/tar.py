"""Tars as sources: cut into parts where they are whole, read in any state."""

import mmap
from collections.abc import Iterator
from dataclasses import replace

from pipeline.ingest.item import Item
from pipeline.ingest.sources.decompress import Unpacked
from pipeline.ingest.sources.files import InputError, open_archive
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import Names, is_unsafe, member_name, place_name
from pipeline.ingest.sources.samples import find_inputs, group, is_note, read_group
from pipeline.ingest.sources.tar_stream import StreamMember, read_members
from pipeline.remote.location import is_remote
from pipeline.shards.tar import Member, ShardError, walk_tar


def cut_tar(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a tar between samples into parts of about `chunk_inputs` inputs.

    One that is remote, compressed, damaged, or holds links stays in one part, whose number of
    inputs only reading tells.
    """
    file = whole.files[0]
    if is_remote(whole.root) or not file.size:
        return [whole]
    try:
        with open_archive(whole.location(file), file) as opened:
            # Not closed here: the traceback of an error keeps views of it for a while.
            tar = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            places = list(walk_tar(memoryview(tar), ""))
    except (InputError, ShardError, OSError):
        return [whole]
    if any(place.name.endswith("/") for place in places):  # Old tars name folders so.
        return [whole]
    return _cut(whole, places, chunk_inputs)


def _cut(whole: Chunk, places: list[Member], chunk_inputs: int) -> list[Chunk]:
    archive, names = whole.name(whole.files[0]), Names()
    parts: list[Chunk] = []
    first, count = 0, 0
    renamed: list[tuple[int, str]] = []
    for joined in group(places, lambda place: None if is_unsafe(place.name) else place.name):
        if count >= chunk_inputs:
            stop = joined[0].start
            parts.append(_part(whole, first, stop, count, renamed))
            first, count, renamed = stop, 0, []
        for i in find_inputs([place.name for place in joined])[0]:
            name = member_name(archive, joined[i].name)
            if whole.wants(name.removeprefix(f"{archive}!")):
                if (taken := names.take(name)) != name:
                    renamed.append((count, taken))
                count += 1
    return [*parts, _part(whole, first, None, count, renamed)]


def _part(
    whole: Chunk, first: int, stop: int | None, count: int, renamed: list[tuple[int, str]]
) -> Chunk:
    return replace(whole, first=first, stop=stop, num_inputs=count, names=tuple(renamed))


def read_tar(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the inputs of a tar or of a part of one; see `read_members` for damage."""
    file = chunk.files[0]
    archive = chunk.name(file)
    if file.size == 0:
        yield Item(place_name(archive, 0), problem="empty")
        return
    offset = chunk.first
    try:
        with open_archive(chunk.location(file), file) as opened:
            tar = Unpacked(opened, chunk.first, chunk.stop)
            for item in _items(chunk, archive, tar, max_bytes):
                yield item
                offset = tar.offset
    except InputError as error:
        yield Item(place_name(archive, offset), problem=error.reason)


def _items(chunk: Chunk, archive: str, tar: Unpacked, max_bytes: int) -> Iterator[Item]:
    def wants(name: str) -> bool:
        return is_note(name) or chunk.wants(member_name("", name)[1:])

    names, fixed = Names(), dict(chunk.names)
    number = 0
    for joined in group(read_members(tar, wants, max_bytes), _key_name):
        if joined[0].name is None:
            yield Item(place_name(archive, joined[0].offset), problem=joined[0].problem)
            continue
        for item in read_group(archive, joined):
            if chunk.wants(item.name.removeprefix(f"{archive}!")):
                yield replace(item, name=fixed.get(number) or names.take(item.name))
                number += 1


def _key_name(member: StreamMember) -> str | None:
    return None if member.problem == "bad_record" else member.name
