"""Tars as sources: cut into parts where they are intact, read in any state."""

import mmap
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import IO

from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.files import InputError, open_archive
from pipeline.ingest.sources.inputs import Chunk
from pipeline.ingest.sources.names import Names, is_unsafe
from pipeline.ingest.sources.samples import NoteCounter
from pipeline.ingest.sources.tar_stream import Decompressed, StreamMember, read_members
from pipeline.remote.location import is_remote
from pipeline.shards.members import MAX_FAR_BYTES, MAX_NOTE_BYTES, Gathered, Input, borders, gather
from pipeline.shards.tar import Member, ShardError, walk_tar

_WINDOW = 16
"""Members of a compressed tar that are in memory together."""

Dropped = Counter[str]
"""Number of members that are no inputs and say nothing, by reason."""


def cut_tar(whole: Chunk, chunk_inputs: int) -> list[Chunk]:
    """Cut a tar between samples into parts of about `chunk_inputs` inputs.

    A tar that is remote, compressed, damaged, or has links is one part, whose number of inputs is
    known only after reading.
    """
    if is_remote(whole.root) or not whole.file.size:
        return [whole]
    try:
        with open_archive(whole) as opened:
            members = _walk(opened, whole)
    except InputError:
        return [whole]
    return [whole] if members is None else _cut(whole, members, chunk_inputs)


def _walk(opened: IO[bytes], chunk: Chunk) -> list[Member] | None:
    """List the members of an intact tar or part of one by its headers; None for any other."""
    try:
        # Not closed here: the traceback of an error keeps views of it for a while.
        tar = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        part = tar[chunk.first : chunk.stop]
        found = list(walk_tar(part, "", is_part=chunk.stop is not None))
    except (ShardError, OSError, ValueError):
        return None
    if any(member.name.endswith("/") for member in found):  # A folder in a pre-POSIX tar.
        return None
    return found


def _usable(name: str) -> str | None:
    return None if is_unsafe(name) else name


def _cut(whole: Chunk, members: list[Member], chunk_inputs: int) -> list[Chunk]:
    names, parts = Names(), []
    first, count = 0, 0
    renamed: list[tuple[int, str]] = []
    gathered = gather([_usable(member.name) for member in members])
    places = borders(gathered)
    passed, last = 0, 0
    for place in gathered.input_places():
        if count >= chunk_inputs:
            while passed < len(places) and places[passed] <= last:
                passed += 1
            if passed < len(places) and places[passed] <= place:
                stop = members[places[passed]].start
                part = replace(
                    whole, first=first, stop=stop, num_inputs=count, names=tuple(renamed)
                )
                parts.append(part)
                first, count, renamed = stop, 0, []
        last = place
        name = whole.member(members[place].name)
        if whole.wants(name):
            if (unique := names.take(name)) != name:
                renamed.append((count, unique))
            count += 1
    return [*parts, replace(whole, first=first, num_inputs=count, names=tuple(renamed))]


def read_tar(chunk: Chunk, max_bytes: int, dropped: Dropped | None = None) -> Iterator[Item]:
    """Read the inputs of a tar or of a part of one; for damage see `read_members`.

    Args:
        chunk: The tar, or a part of it.
        max_bytes: Larger inputs come without bytes.
        dropped: Counts the members that are no inputs and say nothing.
    """
    if chunk.file.size == 0:
        yield chunk.problem(0, "empty")
        return
    reader = _Reader(chunk, max_bytes, Counter() if dropped is None else dropped)
    try:
        with open_archive(chunk) as opened:
            members = _walk(opened, chunk)
            if members is not None:
                yield from reader.read_intact(opened, members)
            else:
                yield from reader.read_stream(opened)
    except InputError as error:
        yield chunk.problem(reader.offset, error.reason)


class _Reader:
    """Reads the inputs of one tar or part, and counts what says nothing about them."""

    def __init__(self, chunk: Chunk, max_bytes: int, dropped: Dropped) -> None:
        self.offset = chunk.first
        """How far it has read."""
        self._chunk, self._max_bytes = chunk, max_bytes
        self._names = Names(chunk.names)
        self._notes = NoteCounter(chunk, dropped)

    def read_intact(self, opened: IO[bytes], members: Sequence[Member]) -> Iterator[Item]:
        """Read a tar whose headers are known, in any order."""

        def load(place: int) -> bytes:
            member = members[place]
            data = os.pread(opened.fileno(), member.size, self._chunk.first + member.offset)
            if len(data) != member.size:  # It was cut just now.
                raise InputError("changed")
            return data

        gathered = gather([_usable(member.name) for member in members])
        self._notes.count(gathered, [member.name for member in members])
        for one in self._wanted(gathered, [member.name for member in members]):
            member = members[one.place]
            contents = {}
            for ending, place in one.notes.items():
                if members[place].size > MAX_NOTE_BYTES:
                    self._notes.lose(place, "too_big")
                else:
                    contents[ending] = load(place)
            problem = self._problem(member)
            data = b"" if problem else load(one.place)
            yield self._item(StreamMember(member.name, 0, data, problem), one, contents)
            self.offset = self._chunk.first + member.offset + member.size

    def read_stream(self, opened: IO[bytes]) -> Iterator[Item]:
        """Read a tar in any state, twice from its start: for the names, then for the data."""
        chunk = self._chunk
        seen: list[StreamMember] = []
        failure: InputError | None = None
        try:
            seen.extend(self._pass(opened, {}))
        except InputError as error:
            failure = error  # What precedes it is read.
        names = [member.name for member in seen]
        broken = [member.problem == "bad_record" for member in seen]
        gathered = gather([None if bad else name for name, bad in zip(names, broken, strict=True)])
        self._notes.count(gathered, names)
        inputs = list(self._wanted(gathered, names))
        far = self._load_far(opened, seen, inputs)
        limits = {seen[one.place].offset: self._max_bytes for one in inputs}
        near = {place for one in inputs for place in one.notes.values()} - far.keys()
        limits |= {seen[place].offset: MAX_NOTE_BYTES for place in near - self._notes.lost}
        del seen
        for member, one, contents in self._joined(self._pass(opened, limits), inputs, far):
            if member.name is None:
                yield chunk.problem(member.offset, "bad_record")
            else:
                yield self._item(member, one, contents)
        if failure is not None:
            raise failure

    def _pass(self, opened: IO[bytes], limits: Mapping[int, int]) -> Iterator[StreamMember]:
        opened.seek(0)
        tar = Decompressed(opened, self._chunk.first, self._chunk.stop)
        for member in read_members(tar, limits.get):
            yield member
            self.offset = tar.offset

    def _load_far(
        self, opened: IO[bytes], seen: Sequence[StreamMember], inputs: Sequence[Input]
    ) -> dict[int, bytes]:
        """Load the notes that are far from their images, up to MAX_FAR_BYTES of them."""
        far = {
            place
            for one in inputs
            for place in one.notes.values()
            if abs(place - one.place) >= _WINDOW
        }
        found: dict[int, bytes] = {}
        if not far:
            return found
        limits = {seen[place].offset: MAX_NOTE_BYTES for place in far}
        total = 0
        for place, member in enumerate(self._pass(opened, limits)):
            if place not in far:
                continue
            total += len(member.data)
            if member.problem == "too_big" or total > MAX_FAR_BYTES:
                self._notes.lose(place, "too_big" if member.problem else "too_many")
            else:
                found[place] = member.data
            if total > MAX_FAR_BYTES:
                break
        for place in far - found.keys():
            self._notes.lose(place, "too_many")
        return found

    def _joined(
        self, members: Iterator[StreamMember], inputs: Sequence[Input], far: Mapping[int, bytes]
    ) -> Iterator[tuple[StreamMember, Input, dict[str, bytes]]]:
        """Join the inputs with their notes, in order, as soon as those have passed by."""
        due = deque(inputs)
        last_use: dict[int, int] = {}
        for one in inputs:
            last_use |= {place: one.place for place in one.notes.values() if place not in far}
        images = {one.place for one in inputs}
        held: dict[int, StreamMember] = {}
        for place, member in enumerate(members):
            if place in images or place in last_use:
                held[place] = member
            while due and max(due[0].place, *self._near(due[0], far)) <= place:
                one = due.popleft()
                contents = self._contents(one, held, far)
                yield held.pop(one.place), one, contents
                for note in [n for n in one.notes.values() if last_use.get(n) == one.place]:
                    held.pop(note, None)

    def _contents(
        self, one: Input, held: Mapping[int, StreamMember], far: Mapping[int, bytes]
    ) -> dict[str, bytes]:
        found = {}
        for ending, note in one.notes.items():
            if note in far:
                found[ending] = far[note]
            elif note not in self._notes.lost and self._is_whole(held[note], note):
                found[ending] = held[note].data
        return found

    def _near(self, one: Input, far: Mapping[int, bytes]) -> list[int]:
        places = [n for n in one.notes.values() if n not in far and n not in self._notes.lost]
        return places or [one.place]

    def _is_whole(self, note: StreamMember, place: int) -> bool:
        if note.problem in (None, "empty"):
            return True
        self._notes.lose(place, "too_big" if note.problem == "too_big" else "unreadable")
        return False

    def _problem(self, member: Member) -> Reason | None:
        if is_unsafe(member.name):
            return "bad_record"
        if member.size > self._max_bytes:
            return "too_big"
        return None if member.size else "empty"

    def _wanted(self, gathered: Gathered, names: Sequence[str | None]) -> Iterator[Input]:
        for one in gathered.inputs():
            name = names[one.place]
            if name is None or self._chunk.wants(self._chunk.member(name)):
                yield one

    def _item(self, member: StreamMember, one: Input, contents: Mapping[str, bytes]) -> Item:
        assert member.name is not None
        name = self._chunk.member(member.name)
        said = self._notes.read(name, one, contents)
        return Item(self._names.take(name), member.data, member.problem, **said)
