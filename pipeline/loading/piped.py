"""Open a shard as a byte stream: a file, standard input, or the output of a command."""

import lzma
import os
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import webdataset
from webdataset import utils
from webdataset.gopen import Pipe

from pipeline.config import ConfigError
from pipeline.remote.location import is_remote, local_path, redact_url, scheme_of
from pipeline.shards.tar import ShardError

STDIN = "-"
PIPE = "pipe"
_SCHEMES = ("file", *(name for name in webdataset.gopen_schemes if name != "__default__"))
"""URL schemes that webdataset opens, all but `file` by starting a command."""

TAR_ERRORS = (ShardError, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
"""Errors of reading a damaged tar, compressed or not."""

_PATIENCE = 30.0
"""Seconds a command may take to exit after the end of its output."""
_CURL = {
    6: "the host is not known",
    7: "the server cannot be reached",
    18: "the transfer was cut",
    22: "the server refused, by a status of 400 or more",
    28: "the server did not answer in time",
}


def check_url(url: str) -> None:
    """Raise ConfigError for a shard that, by its name, cannot be opened."""
    if url == STDIN:
        return
    scheme = scheme_of(url)
    if scheme not in ("", *_SCHEMES):
        raise ConfigError(
            f"data.stream.url (={redact_url(url)}) has scheme {scheme}, which webdataset cannot "
            f"read: it knows {', '.join(_SCHEMES)}. Use pipe: with the command that reads it."
        )
    if scheme == PIPE and utils.enforce_security:
        raise ConfigError(
            f"data.stream.url (={url}) runs a command, which WDS_SECURE=1 forbids; unset it."
        )
    if is_remote(url):
        return
    path = local_path(url)
    if not path.exists():
        hint = " Only braces are expanded, as in {000..099}, no *." if "*" in url else ""
        raise ConfigError(f"data.stream.url (={url}) is not a file; correct the path.{hint}")
    if path.is_dir():
        raise ConfigError(
            f"data.stream.url (={url}) is a folder; name its tars, as in {url}/{{000..099}}.tar."
        )


def absolute_url(url: str) -> str:
    """Make a path absolute; URLs, commands and standard input stay unchanged."""
    return url if url == STDIN or is_remote(url) else str(local_path(url).absolute())


@contextmanager
def open_shard(url: str) -> Iterator[IO[bytes]]:
    """Open a shard for reading; its process does not outlive the block.

    Raises:
        ShardError: Its command failed; raised after the end of its output.
        OSError: It cannot be opened.
    """
    if url == STDIN:
        yield sys.stdin.buffer
    elif is_remote(url):
        with _running(url) as stream:
            yield stream
    else:
        with local_path(url).open("rb") as file:
            yield file


@contextmanager
def _running(url: str) -> Iterator[IO[bytes]]:
    pipe = _start(url)
    stream = pipe.stream
    try:
        try:
            yield stream
        except TAR_ERRORS:
            _check_status(pipe, url)  # A failed command explains a truncated tar.
            raise
        _check_status(pipe, url)
    finally:
        _kill(pipe.proc)
        stream.close()


def _start(url: str) -> Pipe:
    if scheme_of(url) != PIPE:
        pipe: Pipe = webdataset.gopen(url)
        return pipe
    # Like webdataset, but in a process group of its own, so that all of `a | b` can be killed, and
    # without standard input, which may be a terminal or another shard.
    return Pipe(
        url[len(PIPE) + 1 :],
        mode="rb",
        shell=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _check_status(pipe: Pipe, url: str) -> None:
    """Raise ShardError if the output ended because the command failed."""
    if pipe.stream.read(1):
        return
    try:
        status = pipe.proc.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        raise ShardError(
            f"the command is still running {_PATIENCE:.0f} s after the end of its output."
        ) from None
    if status == 0:
        return
    if scheme_of(url) == PIPE:
        raise ShardError(f"the command failed with exit status {status}.") from None
    program = pipe.proc.args[0] if isinstance(pipe.proc.args, list) else "the command"
    why = f": {_CURL[status]}" if program == "curl" and status in _CURL else ""
    raise ShardError(f"{program} failed with exit status {status}{why}.") from None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.returncode is not None:  # Reaped; its pid may already be reused.
        return
    if os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
