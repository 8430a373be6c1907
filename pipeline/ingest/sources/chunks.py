"""Sources into chunks, each read by one task, and chunks into items."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from typing_extensions import assert_never

from pipeline.config import ConfigError
from pipeline.ingest.item import Item
from pipeline.ingest.sources.files import read_files
from pipeline.ingest.sources.find import FoundSource, find, list_tree, on_filesystem, pattern_base
from pipeline.ingest.sources.inputs import Chunk, CompressedFiles, File
from pipeline.ingest.sources.names import escape, is_wanted
from pipeline.ingest.sources.source_list import SourceConfig, SourceList, name_sources
from pipeline.ingest.sources.table import (
    check_arrow,
    cut_lines,
    cut_parquet,
    read_arrow,
    read_lines,
    read_parquet,
)
from pipeline.ingest.sources.tar import cut_tar, read_tar
from pipeline.ingest.sources.warc import read_warc
from pipeline.ingest.sources.zip import cut_zip, read_zip
from pipeline.remote.location import HTTP, is_remote, local_path, redact_url, scheme_of


class _Listed(NamedTuple):
    source: SourceConfig
    root: str
    found: list[FoundSource]


def list_chunks(sources: SourceList, *, chunk_inputs: int = 256) -> list[Chunk]:
    """Find the inputs of all sources and cut them into chunks, in a deterministic order.

    Every regular file below a folder is an input; an archive or a table is opened only where it is
    a source itself or matches its pattern. Files are not read, except local tars, zips and JSON
    lines, whose members must be known.

    Args:
        sources: Those without a name get one.
        chunk_inputs: Approximate inputs per chunk. A WARC, a compressed tar, an Arrow file and a
            remote archive are one chunk each.

    Raises:
        ConfigError: A source is missing, unreadable, of an unknown kind, inside another one, or
            without a column of images; or there is no input at all.
    """
    listed = [
        _Listed(source, _root(source.path), find(source.path))
        for source in name_sources(sources).sources
    ]
    _check_disjoint([found for one in listed for found in one.found])
    others = {found.location for one in listed for found in one.found if found.kind}
    chunks = [chunk for one in listed for chunk in _cut_source(one, others, chunk_inputs)]
    if all(chunk.num_inputs == 0 for chunk in chunks):
        names = ", ".join(escape(redact_url(one.source.path)) for one in listed)
        raise ConfigError(
            f"sources (={names}) have no matching file; give a folder of images or an "
            "archive, or other patterns to include."
        )
    return chunks


def read_chunk(
    chunk: Chunk, *, max_bytes: int, dropped: Counter[str] | None = None
) -> Iterator[Item]:
    """Read the inputs of a chunk in order; what cannot be read is an item with a problem.

    Args:
        chunk: One of `list_chunks`.
        max_bytes: Larger inputs come without bytes.
        dropped: Counts, by reason, the members of archives that are no inputs and say nothing.
    """
    for item in _read(chunk, max_bytes, dropped):
        yield item if chunk.labels else _without_label(item)


def _without_label(item: Item) -> Item:
    notes = tuple(note for note in item.notes if not note.startswith("label_"))
    return replace(item, label=None, is_inferred=False, notes=notes)


def _read(chunk: Chunk, max_bytes: int, dropped: Counter[str] | None) -> Iterator[Item]:
    match chunk.kind:
        case "files":
            return read_files(chunk, max_bytes)
        case "tar":
            return read_tar(chunk, max_bytes, dropped)
        case "zip":
            return read_zip(chunk, max_bytes, dropped)
        case "warc":
            return read_warc(chunk, max_bytes)
        case "parquet":
            return read_parquet(chunk, max_bytes)
        case "arrow":
            return read_arrow(chunk, max_bytes)
        case "jsonl":
            return read_lines(chunk, max_bytes)
        case _:
            assert_never(chunk.kind)


def _cut_source(one: _Listed, others: set[str], chunk_inputs: int) -> Iterator[Chunk]:
    source, root = one.source, one.root
    plain = Chunk(source.name or "", "files", root, (), labels=source.labels)
    files = _list_files(one, others)
    while run := tuple(islice(files, chunk_inputs)):
        yield replace(plain, files=CompressedFiles(run), num_inputs=len(run))
    for found in one.found:
        if found.file is None or found.kind in (None, "files"):
            continue
        archive = replace(
            plain,
            kind=found.kind,
            files=(found.file._replace(path=found.given[len(root) :]),),
            include=source.include,
            exclude=source.exclude,
        )
        yield from _cut_archive(archive, chunk_inputs)


def _cut_archive(whole: Chunk, chunk_inputs: int) -> Sequence[Chunk]:
    match whole.kind:
        case "tar":
            return cut_tar(whole, chunk_inputs)
        case "zip":
            return cut_zip(whole, chunk_inputs)
        case "parquet":
            return cut_parquet(whole, chunk_inputs)
        case "jsonl":
            return cut_lines(whole, chunk_inputs)
        case "arrow":
            check_arrow(whole)
    return [whole]


def _list_files(one: _Listed, others: set[str]) -> Iterator[File]:
    """List the inputs that are files: images given by name, and the files of folders."""
    source, root = one.source, one.root
    for found in one.found:
        path = found.given[len(root) :]
        if found.file is None:
            yield from _list_folder(one, found, path, others)
        elif found.kind == "files" and is_wanted(
            path[1:] or os.path.basename(root),  # noqa: PTH119
            source.include,
            source.exclude,
        ):
            yield found.file._replace(path=path)


def _list_folder(one: _Listed, found: FoundSource, path: str, others: set[str]) -> Iterator[File]:
    def wants(below: str) -> bool:
        return is_wanted(f"{escape(path)}/{below}"[1:], one.source.include, one.source.exclude)

    for file in list_tree(found.location, wants, others):
        yield file.below(path) if path else file


def _root(path: str) -> str:
    """Return the common prefix of a source's files: its path, or the folder above its pattern."""
    base = pattern_base(path)
    if not is_remote(base):
        return os.path.abspath(local_path(base)).rstrip("/")  # noqa: PTH100 - keeps links.
    if scheme_of(base) in HTTP:
        return base
    return str(on_filesystem(base, lambda system, path: system.unstrip_protocol(path))).rstrip("/")


def _check_disjoint(found: Sequence[FoundSource]) -> None:
    """Refuse what would be read twice; an archive in a folder is excluded from that instead."""
    folders = {one.location for one in found if one.kind is None}
    seen: set[str] = set()
    for one in found:
        is_inside = one.kind in (None, "files")
        above = _parents(one.location) if is_inside else ()
        clash = next((folder for folder in above if folder in folders), None)
        if one.location in seen:
            clash = one.location
        if clash is not None:
            first, second = escape(redact_url(clash)), escape(redact_url(one.location))
            raise ConfigError(
                f"sources (={first}, {second}) overlap; give each folder or file once."
            )
        seen.add(one.location)


def _parents(location: str) -> Iterator[str]:
    while "/" in location.rstrip("/"):
        location = location.rstrip("/").rpartition("/")[0]
        yield location or "/"
