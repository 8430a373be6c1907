"""fsspec's file systems by URL, and what their errors mean."""

from typing import Any, Literal

import aiohttp
import fsspec

from pipeline.remote.location import HTTP, as_sent, redact_text, scheme_of

_CLIENT = {"requote_redirect_url": False, "trust_env": True}
"""Of aiohttp: the address of a redirect is used unchanged."""
Refusal = Literal["missing", "gone", "forbidden"]
STATUS_KINDS: dict[int, Refusal] = {
    401: "forbidden",
    403: "forbidden",
    404: "missing",
    410: "gone",
}
ADVICE: dict[str, str] = {
    "missing": "Check the address.",
    "gone": "The server has removed it for good: leave it out.",
    "forbidden": "Give this machine credentials that may read it, or sign the address anew.",
}


def open_filesystem(url: str) -> tuple[Any, str]:
    """Open the file system of a URL, configured by the environment; returns it and the path there.

    Raises:
        ImportError: The package for the scheme is not installed.
    """
    if scheme_of(url) in HTTP:  # url_to_fs would take a "::" in the query for a chain of URLs.
        system = fsspec.filesystem(scheme_of(url), encoded=True, client_kwargs=_CLIENT)
        return system, as_sent(url)
    found: tuple[Any, str] = fsspec.url_to_fs(url)
    return found


def name_status(status: int) -> str:
    """Call an HTTP status by its meaning."""
    text = f"HTTP status {status}"
    return f"{STATUS_KINDS[status]} ({text})" if status in STATUS_KINDS else text


def explain(error: Exception) -> str:
    """Say in one line, without secrets, why a file system failed, and what to do."""
    cause = error.__cause__ or error  # fsspec calls every failure of HTTP a missing file.
    status = getattr(cause, "status", 0) if isinstance(cause, aiohttp.ClientError) else 0
    if status:
        text, kind = name_status(status), STATUS_KINDS.get(status)
        advice = ADVICE[kind] if kind else "Check address and server."
    elif isinstance(error, PermissionError):
        text, advice = f"forbidden ({_line(error)})", ADVICE["forbidden"]
    elif isinstance(error, FileNotFoundError) and cause is error:
        text, advice = "no such file", ADVICE["missing"]
    else:
        text, advice = _line(cause), "Check address and credentials."
    return f"{text}. {advice}"


def _line(error: BaseException) -> str:
    return redact_text(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
