"""The process that runs the decoders: bytes on standard input, verdicts on standard output."""

import functools
import gc
import importlib
import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.sandbox import (
    COUNT,
    MESSAGES,
    READY,
    REPLIES,
    SHARED_BYTES,
    encode_verdict,
    put_messages,
    take_messages,
)
from pipeline.ingest.item import Verdict

_MIB = 2**20
_CODE_MB = 64
"""Memory of the process that is mapped from files, which RLIMIT_DATA does not count."""
_GRACE_S = 1.0
"""After the time limit of the parent, which may be gone, until the child ends itself."""


def main() -> None:
    """Reply to messages with verdicts until the input ends; the first message is the set-up."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which then closes the input.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    source, sink = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no verdict.
    shared = mmap.mmap(int(sys.argv[1]), SHARED_BYTES)
    setup = json.loads(b"".join(_read(source, shared)) or b"{}")
    config = ShardConfig(**setup["config"])
    judge = _load(setup["judge"], config)
    gc.freeze()  # What is loaded stays: collections need not scan it.
    limit = (config.max_memory_mb - _CODE_MB) * _MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # Beyond it allocation fails.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(sink, shared, [READY])
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # Codecs print a warning for each damaged file.
    os.dup2(quiet, 2)
    while replies := _reply(_read(source, shared), shared, judge, config):
        _write(sink, shared, replies)


def _reply(
    messages: Iterable[bytes],
    shared: mmap.mmap,
    judge: Callable[[bytes, ShardConfig], Verdict],
    config: ShardConfig,
) -> list[bytes]:
    replies: list[bytes] = []
    for data in messages:
        signal.setitimer(signal.ITIMER_REAL, config.max_seconds + _GRACE_S)
        replies.append(encode_verdict(judge(data, config), data))
        signal.setitimer(signal.ITIMER_REAL, 0)
        COUNT.pack_into(shared, 0, len(replies))
    return replies


def _load(judge: str, config: ShardConfig) -> Callable[[bytes, ShardConfig], Verdict]:
    """Import the function `module:name`, and what it would import or compile for an image."""
    module, _, name = judge.partition(":")
    loaded: Callable[[bytes, ShardConfig], Verdict] = getattr(importlib.import_module(module), name)
    for late in ("gate.kernels", *(("near.hash",) if config.near_duplicates else ())):
        importlib.import_module(f"pipeline.ingest.{late}")
    return loaded


def _read(source: BinaryIO, shared: mmap.mmap) -> Iterator[bytes]:
    """Yield the messages of an exchange; none if the parent has closed the pipe or is gone."""
    count = source.read(COUNT.size)
    if len(count) == COUNT.size:
        receive = functools.partial(_exactly, source)
        yield from take_messages(COUNT.unpack(count)[0], shared, MESSAGES, receive)


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _write(sink: BinaryIO, shared: mmap.mmap, replies: Iterable[bytes]) -> None:
    sink.writelines(put_messages(replies, shared, REPLIES))
    sink.flush()


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, EOFError):  # The parent is gone: nobody waits for a reply.
        sys.exit(1)
