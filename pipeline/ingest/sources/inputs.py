"""Where inputs lie: files as they were when they were listed, and runs of them for one task."""

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import xxhash

from pipeline.ingest.sources.names import escape, is_wanted
from pipeline.remote.location import HTTP, redact_url, scheme_of

Kind = Literal["files", "tar", "zip", "warc", "parquet", "arrow", "jsonl"]


class File(NamedTuple):
    """A file as it was when it was listed."""

    path: str
    """Behind the chunk's root, a slash first; empty where the root is the file."""
    size: int | None
    """Bytes; None where a server does not tell."""
    stamp: str
    """Time of the last change, or the store's tag; empty where there is none."""


class PackedFiles(Sequence[File]):
    """A run of files in a tenth of the memory: a crawl has millions, and its driver knows all."""

    __slots__ = ("_number", "_packed")

    def __init__(self, files: Sequence[File]) -> None:
        self._number = len(files)
        self._packed = zlib.compress(json.dumps(files).encode(), 1)

    def _unpack(self) -> tuple[File, ...]:
        return tuple(File(*file) for file in json.loads(zlib.decompress(self._packed)))

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[File]:
        return iter(self._unpack())

    @overload
    def __getitem__(self, key: int) -> File: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[File, ...]: ...
    def __getitem__(self, key: int | slice) -> File | tuple[File, ...]:
        return self._unpack()[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedFiles) and self._packed == other._packed

    def __hash__(self) -> int:
        return hash(self._packed)


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one task reads: a run of files, or an archive or a part of one."""

    source: str
    """Name of the source."""
    kind: Kind
    root: str
    """Path or URL that the files' paths stand behind; holds surrogates where it is not UTF-8."""
    files: Sequence[File]
    """One where the kind is not `files`."""
    first: int = 0
    """Of an archive: first byte of a tar or of lines, first member of a zip, first row group."""
    stop: int | None = None
    """Where the part ends, likewise; None: with the archive."""
    row: int = 0
    """Number of the first row, of tables."""
    names: tuple[tuple[int, str], ...] = ()
    """Names of inputs that differ from their member's, by position in the chunk: another part of
    the archive holds a member of that name."""
    include: tuple[str, ...] = ()
    """Which members of an archive; all where it is empty."""
    exclude: tuple[str, ...] = ()
    labels: bool = True
    """Whether labels are kept."""
    num_inputs: int | None = None
    """None where only reading tells."""

    @property
    def id(self) -> str:
        """Hex name of what is read, 32 digits; another one when a listed file has changed."""
        files = [(below(self.root, file.path), file.size, file.stamp) for file in self.files]
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

    def location(self, file: File) -> str:
        """Path or URL of a file."""
        return self.root + file.path

    def name(self, file: File) -> str:
        """Name of a file as an input, without what may be secret."""
        return self.source + escape(below(self.root, file.path))

    def wants(self, member: str) -> bool:
        """Tell whether a member of the archive is an input."""
        return is_wanted(member, self.include, self.exclude)


def below(root: str, path: str) -> str:
    """Path of a file behind its root, without the query of a URL."""
    return re.split(r"[?#]", path, maxsplit=1)[0] if scheme_of(root) in HTTP else path
