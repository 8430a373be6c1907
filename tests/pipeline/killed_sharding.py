"""Shard a folder again and again, each time in a process that is killed after a while.

    python killed_sharding.py CRAWL OUT

Every line on standard input is a time in seconds, or empty for all the time it takes; the status
of the process is written out.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

from crawls import build, judge_with

from pipeline.ingest import stage
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.parts import PartSpec, make_part
from pipeline.shards.third_party.indexing import run_here


def run(call, items):
    """Judge in the child itself: to isolate every image would only cost time here."""

    def work(item):
        if isinstance(item, PartSpec):
            return make_part(item, judge_with(item.config))
        return call(item)

    return run_here(work, items)


def main():
    crawl, out = map(Path, sys.argv[1:])
    stage.list_chunks = functools.partial(stage.list_chunks, chunk_inputs=4)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            build(crawl, out, ShardConfig(samples_per_shard=8), resume=True, run=run)
            os._exit(0)
        if line.strip():
            time.sleep(float(line))
            os.kill(child, signal.SIGKILL)  # Not waited for yet: the number is still its own.
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
