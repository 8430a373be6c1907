"""Tars as sources: cut into parts where they are intact, read in any state."""

import mmap
from collections.abc import Iterator
from dataclasses import replace

from pipeline.ingest.item import Item
from pipeline.ingest.sources.files import InputError, open_archive
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import Names, folder_label, is_unsafe
from pipeline.ingest.sources.samples import find_inputs, group_by_key, is_sidecar, read_sidecars
from pipeline.ingest.sources.tar_stream import Decompressed, StreamMember, read_members
from pipeline.remote.location import is_remote
from pipeline.shards.tar import Member, ShardError, walk_tar


def cut_tar(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a tar between samples into parts of about `chunk_inputs` inputs.

    A tar that is remote, compressed, damaged, or has links is one part, whose number of inputs is
    known only after reading.
    """
    if is_remote(whole.root) or not whole.file.size:
        return [whole]
    try:
        with open_archive(whole) as opened:
            # Not closed here: the traceback of an error keeps views of it for a while.
            tar = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            members = list(walk_tar(memoryview(tar), ""))
    except (InputError, ShardError, OSError):
        return [whole]
    if any(member.name.endswith("/") for member in members):  # A folder in a pre-POSIX tar.
        return [whole]
    return _cut(whole, members, chunk_inputs)


def _cut(whole: Chunk, members: list[Member], chunk_inputs: int) -> list[Chunk]:
    names, parts = Names(), []
    first, count = 0, 0
    renamed: list[tuple[int, str]] = []
    groups = group_by_key(members, lambda one: None if is_unsafe(one.name) else one.name)
    for group in groups:
        if count >= chunk_inputs:
            stop = group[0].start
            part = replace(whole, first=first, stop=stop, num_inputs=count, names=tuple(renamed))
            parts.append(part)
            first, count, renamed = stop, 0, []
        for i in find_inputs([member.name for member in group])[0]:
            name = whole.member(group[i].name)
            if whole.wants(name):
                if (unique := names.take(name)) != name:
                    renamed.append((count, unique))
                count += 1
    return [*parts, replace(whole, first=first, num_inputs=count, names=tuple(renamed))]


def read_tar(chunk: Chunk, max_bytes: int) -> Iterator[Item]:
    """Read the inputs of a tar or of a part of one; for damage see `read_members`."""
    if chunk.file.size == 0:
        yield chunk.problem(0, "empty")
        return
    offset = chunk.first
    try:
        with open_archive(chunk) as opened:
            tar = Decompressed(opened, chunk.first, chunk.stop)
            for item in _items(chunk, tar, max_bytes):
                yield item
                offset = tar.offset
    except InputError as error:
        yield chunk.problem(offset, error.reason)


def _items(chunk: Chunk, tar: Decompressed, max_bytes: int) -> Iterator[Item]:
    def wants(name: str) -> bool:
        return is_sidecar(name) or chunk.wants(chunk.member(name))

    names = Names(chunk.names)
    members = read_members(tar, wants, max_bytes)
    for group in group_by_key(members, lambda m: None if m.problem == "bad_record" else m.name):
        if group[0].name is None:
            yield chunk.problem(group[0].offset, "bad_record")
            continue
        for item in _read_group(chunk, group):
            if chunk.wants(item.name):
                yield replace(item, name=names.take(item.name))


def _read_group(chunk: Chunk, group: list[StreamMember]) -> Iterator[Item]:
    """Make the items of a group of named members; their names need not be unique."""
    inputs, sidecars = find_inputs([member.name for member in group])
    annotations = read_sidecars({extension: group[i].data for extension, i in sidecars.items()})
    for i in inputs:
        member = group[i]
        assert member.name is not None
        name = chunk.member(member.name)
        if not sidecars:
            annotations = {"label": folder_label(chunk.path_of(name)), "is_inferred": True}
        yield Item(name, member.data, member.problem, **annotations)
