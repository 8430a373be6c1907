"""Judges that do to their process what hostile images do; the child of an examiner imports them."""

import os
import signal
import time

import numpy as np

from pipeline.crawl.item import Judged

ACCEPTED = Judged("accepted", stored=b"stored", near_words=np.array([1, 2**63], np.uint64))


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
            return Judged("accepted", stored=bytes(len(bytearray(int(rest)))))
        case b"print":
            print("loud", flush=True)  # noqa: T201
            os.write(1, b"\xff" * 100)
        case b"long":
            return Judged("accepted", stored=bytes(int(rest)))
    return ACCEPTED


def no_judge():
    """Never called: its module's import is what fails."""


no_judge.__module__ = "no_such_module"
