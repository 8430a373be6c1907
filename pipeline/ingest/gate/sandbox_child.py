"""The process in which decoders run: bytes in at its standard input, verdicts out at its output."""

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
    ANSWERS,
    COUNT,
    MESSAGES,
    READY,
    SHARED_BYTES,
    judged_to_bytes,
    lay,
    pick_up,
)
from pipeline.ingest.item import Verdict

_MIB = 2**20
_CODE_MB = 64
"""Of the memory of a process, what is mapped from files, of which the kernel's limit knows not."""
_GRACE_S = 1.0
"""How much later than its parent the child ends itself; it does where the parent has gone."""


def main() -> None:
    """Answer messages with verdicts until the input ends; the first is the set-up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; then the input ends.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    source, sink = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no verdict.
    shared = mmap.mmap(int(sys.argv[1]), SHARED_BYTES)
    setup = json.loads(b"".join(_read(source, shared)) or b"{}")
    config = ShardConfig(**setup["config"])
    judge = _load(setup["judge"], config)
    gc.freeze()  # What is loaded stays: no collection need look at it.
    limit = (config.max_memory_mb - _CODE_MB) * _MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # Then allocation fails, no more.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(sink, shared, [READY])
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # Codecs warn of damaged files there, once for each.
    os.dup2(quiet, 2)
    while answers := _answer(_read(source, shared), shared, judge, config):
        _write(sink, shared, answers)


def _answer(
    messages: Iterable[bytes],
    shared: mmap.mmap,
    judge: Callable[[bytes, ShardConfig], Verdict],
    config: ShardConfig,
) -> list[bytes]:
    answers: list[bytes] = []
    for data in messages:
        signal.setitimer(signal.ITIMER_REAL, config.max_seconds + _GRACE_S)
        answers.append(judged_to_bytes(judge(data, config), data))
        signal.setitimer(signal.ITIMER_REAL, 0)
        COUNT.pack_into(shared, 0, len(answers))
    return answers


def _load(judge: str, config: ShardConfig) -> Callable[[bytes, ShardConfig], Verdict]:
    """Import the function `module:name`, and what it would import, and compile, for an image."""
    module, _, name = judge.partition(":")
    loaded: Callable[[bytes, ShardConfig], Verdict] = getattr(importlib.import_module(module), name)
    for late in ("gate.kernels", *(("near.hash",) if config.near_duplicates else ())):
        importlib.import_module(f"pipeline.ingest.{late}")
    return loaded


def _read(source: BinaryIO, shared: mmap.mmap) -> Iterator[bytes]:
    """Yield the messages of an exchange; none where the parent has closed its end, or is gone."""
    count = source.read(COUNT.size)
    if len(count) == COUNT.size:
        receive = functools.partial(_exactly, source)
        yield from pick_up(COUNT.unpack(count)[0], shared, MESSAGES, receive)


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _write(sink: BinaryIO, shared: mmap.mmap, answers: Iterable[bytes]) -> None:
    sink.writelines(lay(answers, shared, ANSWERS))
    sink.flush()


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, EOFError):  # The parent is gone, and nobody waits for an answer.
        sys.exit(1)
