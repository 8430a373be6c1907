"""Judges that do to their process what hostile images do; the child of a sandbox imports them."""

import itertools
import mmap
import os
import signal
import sys
import time

import numpy as np

from pipeline.ingest.gate.sandbox import COUNT
from pipeline.ingest.item import Verdict

ACCEPTED = Verdict("accepted", stored=b"stored", near_words=np.array([1, 2**63], np.uint64))


def judge(data, config):
    """Do what `data` says."""
    what, _, rest = data.partition(b" ")
    match what:
        case b"crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"once":  # Crashes in the first process only: it leaves a file behind.
            if not os.path.exists(rest):  # noqa: PTH110
                os.close(os.open(rest, os.O_CREAT))
                os.kill(os.getpid(), signal.SIGSEGV)
        case b"sleep":
            time.sleep(float(rest or 60))
        case b"eat":
            return Verdict("accepted", stored=bytes(len(bytearray(int(rest)))))
        case b"print":
            print("loud", flush=True)  # noqa: T201
            os.write(1, b"\xff" * 100)
        case b"long":
            return Verdict("accepted", stored=bytes(int(rest)))
    return ACCEPTED


def count_for_ever(data, config):
    """Say of ever more images that they are done, and end none."""
    shared = mmap.mmap(int(sys.argv[1]), COUNT.size)
    for number in itertools.count():
        COUNT.pack_into(shared, 0, number)
        time.sleep(0.01)


def no_judge():
    """Never called: its module's import is what fails."""


no_judge.__module__ = "no_such_module"
