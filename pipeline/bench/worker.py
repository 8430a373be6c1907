"""The process of one contender: told by lines of JSON what to do, answers with lines of JSON."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pipeline.bench.contenders import CONTENDERS, variants_of
from pipeline.bench.measure import Chosen, choose, run
from pipeline.bench.process import serve
from pipeline.bench.work import LoaderWork, check_batch


def main() -> None:
    """Serve one contender until standard input ends."""
    job = json.loads(sys.argv[1])
    work = LoaderWork(**{**job["work"], **{k: Path(job["work"][k]) for k in ("shards", "scratch")}})
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: work.cores])
    serve(lambda commands: _answers(job["name"], work, commands))


def _answers(name: str, work: LoaderWork, commands: TextIO) -> Iterator[dict[str, Any]]:
    """Answer each command; the first answer says that the imports are done, or what failed."""
    contender = next(one for one in CONTENDERS if one.name == name)
    chosen: Chosen | None = None
    try:
        variants = variants_of(contender.name, work)
        yield {}
        for line in commands:
            command = json.loads(line)
            if chosen is None:
                chosen = choose(variants, command["seconds"])
                first = next(chosen.batches)
                picture = contender.role != "limit"
                mean = check_batch(np.asarray(first), work) if picture else None
                yield {"setting": chosen.setting, "mean": mean}
            else:
                yield asdict(run(chosen.batches, **command))
    except ImportError as error:
        yield {"failure": f"not installed: {error}; pip install -e '.[bench]'"}
    except Exception as error:  # Whatever a peer raises becomes its row in the table.
        first_line = (str(error).strip() or "no message").splitlines()[0]
        yield {"failure": f"failed: {type(error).__name__}: {first_line}"}
    if chosen is not None:
        chosen.batches.close()


if __name__ == "__main__":
    main()
