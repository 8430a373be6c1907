"""The sources of a crawl, as given on the command line or in a YAML file."""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import Field, field_validator

from pipeline.config import Config, ConfigError, load
from pipeline.ingest.sources.find import pattern_base
from pipeline.ingest.sources.names import escape, shortest_tails
from pipeline.remote.location import check_scheme, is_remote, local_path, redact_url

_YAML = (".yaml", ".yml")


class SourceConfig(Config):
    """One source."""

    name: str | None = None
    """Prefix of its inputs' names, also in the ledger; default: the shortest unique path tail."""
    path: str
    """A folder, an archive, an image, or a pattern for several of them ({000..099}, *.tar); a
    local path or a URL. Relative paths start at the working directory."""
    include: tuple[str, ...] = ()
    """Globs, see `is_wanted` in pipeline/ingest/sources/names.py; only what matches one is an
    input. They match the path below the source or inside an archive, and no rows of tables."""
    exclude: tuple[str, ...] = ()
    """Globs; what matches one is excluded."""
    weight: int = Field(1, ge=1)
    """Weight of its images in a training mixture; only recorded."""
    labels: bool = True
    """Whether its labels are kept."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and (not name.strip("/") or name != name.strip("/")):
            raise ValueError("must not be empty, nor begin or end with a slash.")
        return name


class SourceList(Config):
    """All sources, in the order they were given."""

    sources: tuple[SourceConfig, ...]
    """At least one."""

    @field_validator("sources")
    @classmethod
    def _are_some(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        if not sources:
            raise ValueError("must hold a source; add an entry with a path.")
        return sources


def parse_sources(
    arguments: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> SourceList:
    """Read the arguments of a command: paths and URLs, or YAML files that hold `sources: [...]`.

    Args:
        arguments: Those ending in .yaml or .yml are read, all others are sources.
        include: Globs for every source without globs of its own.
        exclude: Likewise.

    Returns:
        The sources, each with a name.

    Raises:
        ConfigError: There is no source, a YAML file is invalid, or two sources share a name.
    """
    found: list[SourceConfig] = []
    for text in arguments:
        if text.lower().endswith(_YAML):
            found += load(SourceList, Path(text)).sources
        else:
            found.append(SourceConfig(path=text))
    if not found:
        raise ConfigError("sources (=) are none; give a folder of images or an archive.")
    filled = [
        source.model_copy(
            update={
                "include": source.include or tuple(include),
                "exclude": source.exclude or tuple(exclude),
            }
        )
        for source in found
    ]
    return name_sources(SourceList(sources=tuple(filled)))


def name_sources(sources: SourceList) -> SourceList:
    """Name every unnamed source by the shortest unique tail of its path.

    Raises:
        ConfigError: Two names are equal, or one is a path prefix of another.
    """
    unnamed = [source for source in sources.sources if source.name is None]
    tails = iter(shortest_tails([_absolute(source.path) for source in unnamed]))
    named = tuple(
        source if source.name is not None else source.model_copy(update={"name": next(tails)})
        for source in sources.sources
    )
    names = {source.name or "" for source in named}
    for name in sorted(names):
        above = [name[:i] for i, letter in enumerate(name) if letter in "/!" and name[:i] in names]
        if above:
            raise ConfigError(f"source names (={above[0]}, {name}) must not be nested; rename one.")
    if len(names) < len(named):
        listed = sorted(source.name or "" for source in named)
        twice = next(a for a, b in pairwise(listed) if a == b)
        raise ConfigError(f"source name (={twice}) is given twice; give each source its own.")
    return SourceList(sources=named)


def _absolute(path: str) -> str:
    """Return the canonical location of a source, without secrets."""
    check_scheme(path)
    base = pattern_base(path)
    if is_remote(base):
        return escape(redact_url(base).rstrip("/"))
    return escape(os.fspath(local_path(base).resolve()))
