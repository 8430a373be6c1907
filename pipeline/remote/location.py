"""Where shards may lie: local paths and the URLs that are allowed."""

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from pipeline.config import ConfigError

HTTP = ("http", "https")
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "abfs": "adlfs",
    "az": "adlfs",
}
"""What fsspec needs for a scheme that it does not open by itself."""
_SCHEMES = ("file", "memory", *HTTP, *PACKAGES)
"""The only ones that are opened; fsspec knows more, some of which start programs."""


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A file by its URL, and what is known of it."""

    url: str
    num_bytes: int | None
    sha256: str | None


def scheme_of(location: str) -> str:
    """Scheme of a URL in lower case, "" for a path; a drive letter is no scheme."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", location)
    return found[1].lower() if found else ""


def check_scheme(url: str) -> None:
    """Raise ConfigError for a URL of a kind that is never opened."""
    if (scheme := scheme_of(url)) not in ("", *_SCHEMES):
        raise ConfigError(
            f"location (={redact_url(url)}) has scheme {scheme}, which is none of "
            f"{', '.join(_SCHEMES)}; copy the files to one of these. (A local name with a colon "
            "needs ./ before it.)"
        )


def is_remote(location: str) -> bool:
    """Tell a URL from a local path; `file:` is local."""
    return scheme_of(location) not in ("", "file")


def local_path(location: str) -> Path:
    """Path of a local location, given as a path or as a file: URL."""
    if scheme_of(location) != "file":
        return Path(location)
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"location (={location}) names a host; a file: URL begins with file:///.")
    return Path(unquote(parts.path))


def join(base: str, name: str) -> str:
    """Find a name that is relative to a folder; absolute paths and URLs stay as they are.

    >>> join("https://host/set?key=1", "../a b.tar"), join("/data", "a.tar")
    ('https://host/a%20b.tar', '/data/a.tar')
    """
    if scheme_of(name) or os.path.isabs(name):  # noqa: PTH117 - a name may be no path.
        return name
    if not is_remote(base):
        return os.fspath(local_path(base) / name)
    escaped = quote(name) if scheme_of(base) in HTTP else name
    scheme, _, rest = _without_query(base).partition("://")
    host, _, folder = rest.partition("/")
    path = f"{folder.rstrip('/')}/{escaped}".lstrip("/")
    if {".", ".."} & set(escaped.split("/")):  # Else untouched: object stores know a//b.
        path = posixpath.normpath(f"/{path}")[1:]
    return f"{scheme}://{host}/{path}"


def redact_url(url: str) -> str:
    """Leave out what may be secret: the password, and a query that may hold a signature."""
    if not is_remote(url):
        return url
    return re.sub(r"^([^:/]+://)[^/@]*@", r"\1", _without_query(url))


def _without_query(url: str) -> str:
    """Cut the query off; only HTTP has one, elsewhere a question mark is part of a name."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if scheme_of(url) in HTTP else url
