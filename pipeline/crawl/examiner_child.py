"""The process in which decoders run: bytes in at its standard input, verdicts out at its output."""

import importlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from pipeline.crawl.config import ShardConfig
from pipeline.crawl.item import Judged
from pipeline.crawl.judged_bytes import judged_to_bytes

HEADER = struct.Struct("<I?")
"""Stands before every message: its length, and whether it lies in the memory that both share."""
ROOM = 2**20
"""Bytes of that memory; larger messages go through the pipes, at three times the cost."""
READY = b"ready"
"""The first message, once everything is loaded."""
_MIB = 2**20
_CODE_MB = 64
"""Of the memory of a process, what is mapped from files, of which the kernel's limit knows not."""
_GRACE_S = 1.0
"""How much later than its parent the child ends itself; it does where the parent has gone."""


def main() -> None:
    """Answer every message with a verdict until the input ends; the first is the set-up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; then the input ends.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    source, sink = os.fdopen(0, "rb", closefd=False), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a library prints is no verdict.
    shared = mmap.mmap(int(sys.argv[1]), ROOM)
    setup = json.loads(_read(source, shared) or b"{}")
    config = ShardConfig(**setup["config"])
    judge = _load(setup["judge"], config)
    limit = (config.max_memory_mb - _CODE_MB) * _MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # Then allocation fails, no more.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _write(sink, shared, READY)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # Codecs warn of damaged files there, once for each.
    os.dup2(quiet, 2)
    while (data := _read(source, shared)) is not None:
        signal.setitimer(signal.ITIMER_REAL, config.max_seconds + _GRACE_S)
        judged = judge(data, config)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer = judged_to_bytes(judged, data)
        del data, judged
        _write(sink, shared, answer)


def _load(judge: str, config: ShardConfig) -> Callable[[bytes, ShardConfig], Judged]:
    """Import the function `module:name`, and what it would import with the first image."""
    module, _, name = judge.partition(":")
    loaded: Callable[[bytes, ShardConfig], Judged] = getattr(importlib.import_module(module), name)
    from pipeline.crawl.shrink import shrink

    shrink(np.zeros((2, 2, 3), np.uint8), 1, 1)  # Compiles it, on a machine that never did.
    if config.near_duplicates:
        from pipeline.crawl.luma import luma
        from pipeline.crawl.near_hash import near_words

        near_words(luma(np.zeros((1, 1, 3), np.uint8)))
    return loaded


def _read(source: BinaryIO, shared: mmap.mmap) -> bytes | None:
    """Read a message; None where the parent has closed its end, or is gone."""
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    size, is_shared = HEADER.unpack(header)
    data = shared[:size] if is_shared else source.read(size)
    return data if len(data) == size else None


def _write(sink: BinaryIO, shared: mmap.mmap, message: bytes) -> None:
    is_shared = len(message) <= ROOM
    if is_shared:
        shared[: len(message)] = message
    sink.write(HEADER.pack(len(message), is_shared))
    if not is_shared:
        sink.write(message)
    sink.flush()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # The parent is gone, and nobody waits for an answer.
        sys.exit(1)
