"""Locations of shards: local paths and the allowed URLs."""

import os
import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import yarl

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
"""Package that fsspec needs for a scheme."""
_SCHEMES = ("file", "memory", *HTTP, *PACKAGES)
"""The only schemes that are opened; fsspec knows more, some of which start programs."""

_find_unsendable = re.compile(r"[^\x21-\x7e]+").sub
_replace_secrets = re.compile(
    r"(?i)\b(https?://)(?:[^\s/?#@'\"<>]*@)?([^\s?#'\"<>]*)(?:[?#][^\s'\"<>]*)?"
).sub


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A file at a URL, and what is known of it."""

    url: str
    num_bytes: int | None
    sha256: str | None


def scheme_of(location: str) -> str:
    """Return the scheme of a URL in lower case, "" for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", location)
    return found[1].lower() if found else ""


def check_scheme(url: str) -> None:
    """Raise ConfigError for a URL with a scheme that is never opened."""
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
    """Return the path of a local location, given as a path or a file: URL."""
    if scheme_of(location) != "file":
        return Path(location)
    parts = urlsplit(location)
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(f"location (={location}) names a host; a file: URL begins with file:///.")
    return Path(unquote(parts.path))


def join(base: str, name: str) -> str:
    """Resolve a name against a folder; absolute paths and URLs stay unchanged.

    >>> join("https://host/set?key=1", "../a b.tar"), join("/data", "a.tar")
    ('https://host/a%20b.tar', '/data/a.tar')
    """
    if scheme_of(name) or os.path.isabs(name):  # noqa: PTH117 - a name need not be a path.
        return name
    if not is_remote(base):
        return os.fspath(local_path(base) / name)
    escaped = quote(name) if scheme_of(base) in HTTP else name
    scheme, _, rest = _without_query(base).partition("://")
    host, _, folder = rest.partition("/")
    path = f"{folder.rstrip('/')}/{escaped}".lstrip("/")
    if {".", ".."} & set(escaped.split("/")):  # Else unchanged: object stores allow a//b.
        path = posixpath.normpath(f"/{path}")[1:]
    return f"{scheme}://{host}/{path}"


def as_sent(url: str) -> str:
    """Return an HTTP URL as it is sent: as given, since a signature covers every byte.

    Only what no request may hold is escaped: spaces, controls and letters beyond ASCII.

    >>> as_sent("https://host/a%2Fb c?sign='%2f+%zz"), as_sent("http://bücher.example/ü")
    ("https://host/a%2Fb%20c?sign='%2f+%zz", 'http://xn--bcher-kva.example/%C3%BC')
    """
    found = re.match(r"[^:/?#]+://[^/?#]*", url)
    origin = found[0] if found else ""
    rest = url[len(origin) :]
    if not origin.isascii():
        origin = str(yarl.URL(origin)).rstrip("/")
    return origin + _find_unsendable(_escape, rest)


def _escape(found: re.Match[str]) -> str:
    return quote(found[0].encode("utf-8", "surrogateescape"), safe="")


def redact_url(url: str) -> str:
    """Remove what may be secret: the password, and a query that may hold a signature."""
    if not is_remote(url):
        return url
    if scheme_of(url) not in HTTP:  # A command may name URLs.
        url = redact_text(url)
    return re.sub(r"^([^:/]+://)[^/@]*@", r"\1", _without_query(url))


def redact_text(text: str) -> str:
    """Remove what may be secret from the HTTP URLs in a text, such as a library's error."""
    return _replace_secrets(r"\1\2", text)


def _without_query(url: str) -> str:
    """Cut off the query; only HTTP has one, elsewhere a question mark is part of a name."""
    return re.split(r"[?#]", url, maxsplit=1)[0] if scheme_of(url) in HTTP else url
