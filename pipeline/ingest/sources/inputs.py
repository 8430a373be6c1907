"""Where inputs lie: files as they were listed, and the chunks of them that tasks read."""

import functools
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, overload

import xxhash

from pipeline.ingest.item import Item, Reason
from pipeline.ingest.sources.names import escape, is_wanted, member_name, place_name
from pipeline.remote.location import HTTP, redact_url, scheme_of

Kind = Literal["files", "tar", "zip", "warc", "parquet", "arrow", "jsonl"]


class File(NamedTuple):
    """A file as it was when it was listed."""

    path: str
    """Relative to the chunk's root, with a leading slash; empty where the root is the file."""
    size: int | None
    """Bytes; None where the server does not report it."""
    stamp: str
    """Modification time or the store's ETag; empty where there is none."""
    notes: "tuple[File, ...]" = ()
    """Files that say something of this one: sidecars, metadata files."""

    @classmethod
    def load(cls, fields: Sequence[Any]) -> "File":
        """Undo what JSON made of a file."""
        path, size, stamp, notes = fields
        return cls(path, size, stamp, tuple(map(cls.load, notes)))

    def below(self, folder: str) -> "File":
        """Return the same file with its paths below `folder`."""
        notes = tuple(note.below(folder) for note in self.notes)
        return self._replace(path=folder + self.path, notes=notes)


class CompressedFiles(Sequence[File]):
    """A run of files in a tenth of the memory: the driver holds all the millions of a crawl."""

    __slots__ = ("_compressed", "_num_files")

    def __init__(self, files: Sequence[File]) -> None:
        self._num_files = len(files)
        self._compressed = zlib.compress(json.dumps(files).encode(), 1)

    def _load(self) -> tuple[File, ...]:
        return tuple(File.load(file) for file in json.loads(zlib.decompress(self._compressed)))

    def __len__(self) -> int:
        return self._num_files

    def __iter__(self) -> Iterator[File]:
        return iter(self._load())

    @overload
    def __getitem__(self, key: int) -> File: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[File, ...]: ...
    def __getitem__(self, key: int | slice) -> File | tuple[File, ...]:
        return self._load()[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompressedFiles) and self._compressed == other._compressed

    def __hash__(self) -> int:
        return hash(self._compressed)


@dataclass(frozen=True)
class Chunk:
    """What one task reads: a run of files, or an archive or a part of one."""

    source: str
    """Name of the source."""
    kind: Kind
    root: str
    """Path or URL prefix of the files; holds surrogates where it is not UTF-8."""
    files: Sequence[File]
    """Exactly one, the archive or table, unless the kind is `files`."""
    first: int = 0
    """Start of the part: byte of a tar or of JSON lines, member of a zip, row group of a table."""
    stop: int | None = None
    """End of the part, exclusive; None for the end of the archive."""
    row: int = 0
    """Number of the first row of a table."""
    names: tuple[tuple[int, str], ...] = ()
    """(position in the chunk, name) of inputs renamed because an earlier part of the archive has
    a member of the same name."""
    include: tuple[str, ...] = ()
    """Globs for members of an archive; empty for all members."""
    exclude: tuple[str, ...] = ()
    labels: bool = True
    """Whether labels are kept."""
    num_inputs: int | None = None
    """None where it is known only after reading."""

    @property
    def id(self) -> str:
        """32 hex digits that identify what is read; they change when a listed file changes."""
        files = [(self._path(file), file.size, file.stamp, *file.notes) for file in self.files]
        part = (
            self.source,
            self.kind,
            redact_url(self.root),
            files,
            self.first,
            self.stop,
            self.row,
        )
        what = (self.names, self.include, self.exclude, self.labels)
        return xxhash.xxh3_128_hexdigest(repr((part, what)).encode("utf-8", "surrogatepass"))

    @property
    def file(self) -> File:
        """The archive or table."""
        return self.files[0]

    @functools.cached_property
    def archive(self) -> str:
        """Name of the archive or table, the prefix of its members' names."""
        return self.name(self.file)

    def location(self, file: File | None = None) -> str:
        """Path or URL of a file, by default of the archive."""
        return self.root + (file or self.file).path

    def name(self, file: File) -> str:
        """Name of a file as an input, without secrets."""
        return self.source + escape(self._path(file))

    def member(self, path: str) -> str:
        """Name of a member as an input."""
        return member_name(self.archive, path)

    def wants(self, name: str) -> bool:
        """Tell whether the globs select the member that is named `name` as an input."""
        return is_wanted(self.path_of(name), self.include, self.exclude)

    def path_of(self, name: str) -> str:
        """Path in the archive of the member that is named `name` as an input."""
        return name.removeprefix(f"{self.archive}!")

    def problem(self, place: int, reason: Reason) -> Item:
        """Make the item of a place in the archive: a byte, a member's number or a row."""
        return Item(place_name(self.archive, place), problem=reason)

    def _path(self, file: File) -> str:
        """Path of a file below the root, without the query of a URL."""
        is_http = scheme_of(self.root) in HTTP
        return re.split(r"[?#]", file.path, maxsplit=1)[0] if is_http else file.path
