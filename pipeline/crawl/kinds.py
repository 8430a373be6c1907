"""What a file is by its name."""

import re
from itertools import chain

from pipeline.config import ConfigError
from pipeline.crawl.inputs import Kind
from pipeline.crawl.names import escape
from pipeline.remote.location import HTTP, scheme_of, shown

_KINDS: dict[Kind, tuple[str, ...]] = {
    "tar": (
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz"),
        *(".tar.zst", ".tzst"),
    ),
    "zip": (".zip",),
    "warc": (".warc", ".warc.gz", ".arc", ".arc.gz"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "jsonl": (".jsonl", ".ndjson"),
    "files": (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif"),
    ),
}
_ENDINGS = tuple(chain.from_iterable(_KINDS.values()))


def kind_of(location: str) -> Kind:
    """Tell by its name what a file is.

    Raises:
        ConfigError: It is of no kind that is known.
    """
    name = re.split(r"[?#]", location, maxsplit=1)[0] if scheme_of(location) in HTTP else location
    lower = name.lower()
    for kind, endings in _KINDS.items():
        if lower.endswith(endings):
            return kind
    raise ConfigError(
        f"source (={escape(shown(location))}) is of no kind known by its name: "
        f"{', '.join(_ENDINGS)}. "
        "Unpack it, rename it, or give the folder it lies in."
    )
