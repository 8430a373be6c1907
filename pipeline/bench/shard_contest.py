"""Contests of making shards: every contestant in turn, in a process of its own on one core."""

import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.bench.measure import Stretch, speeds
from pipeline.bench.process import Process, running
from pipeline.bench.shard_inputs import Kind, complaint, stored_sizes
from pipeline.bench.shard_peers import Name
from pipeline.bench.table import Row, ratio

ContestName = Literal["reencode", "small", "png", "passthrough", "scaling", "scaling_limit"]
Runner = Name | Literal["two_workers", "two_decoders"]


@dataclass(frozen=True, slots=True)
class Contest:
    """One table."""

    name: ContestName
    title: str
    files: Kind
    runners: tuple[Runner, ...]
    base: Runner
    """Whom the others' ratios are to."""
    times: int = 1
    """How many times as many rounds: where one is short, others disturb it more."""


CONTESTS = (
    Contest(
        "reencode",
        "Photographs of 1,500 px, reduced to 512 px and encoded again as 4:2:0",
        "large",
        ("tessera", "tessera_near", "tessera_444", "tessera_shards", "img2dataset", "webdataset"),
        "img2dataset",
    ),
    Contest(
        "small",
        "Photographs as they are: peers encode again, ours stores the image data as it is",
        "small",
        ("tessera", "tessera_near", "img2dataset", "webdataset"),
        "img2dataset",
    ),
    Contest(
        "png",
        "PNG copies of them, encoded by all as 4:2:0",
        "png",
        ("tessera", "tessera_near", "tessera_444", "img2dataset", "webdataset"),
        "img2dataset",
    ),
    Contest(
        "passthrough",
        "Photographs that are stored as they are, beside the strict decode alone",
        "small",
        ("tessera_near", "tessera_shards", "copy", "decode_only"),
        "decode_only",
        times=3,
    ),
    Contest(
        "scaling",
        "Photographs of 1,500 px by one worker, and by two at once: each takes all, on its core",
        "large",
        ("tessera_near", "two_workers"),
        "tessera_near",
        times=2,
    ),
    Contest(
        "scaling_limit",
        "The same with nothing but the strict decode: what this machine gives to two",
        "large",
        ("decode_only", "two_decoders"),
        "decode_only",
        times=2,
    ),
)
TITLES: dict[Runner, str] = {
    "tessera": "Tessera, parts, near duplicates off",
    "tessera_near": "Tessera, parts",
    "tessera_444": "Tessera, parts, its default, 4:4:4",
    "tessera_shards": "Tessera, finished shards",
    "two_workers": "Tessera, parts, two workers",
    "img2dataset": "img2dataset",
    "webdataset": "webdataset + Pillow",
    "copy": "copy with a strict decode",
    "decode_only": "strict decode only",
    "two_decoders": "strict decode only, by two",
}
_PAIRS: dict[Runner, Name] = {"two_workers": "tessera_near", "two_decoders": "decode_only"}


@dataclass(slots=True)
class _Standing:
    runner: Runner
    variant: str = ""
    failure: str | None = None
    rounds: list[Stretch] = field(default_factory=list)


class Field:
    """The processes of all contestants; they are started once for all contests."""

    def __init__(
        self, stack: ExitStack, scratch: Path, contests: Sequence[Contest], *, cores: int
    ) -> None:
        """Start those who take part; `cores` is 1 where two workers would share a core."""
        self._scratch = scratch
        wanted = {runner for contest in contests for runner in contest.runners}
        names = [name for name in get_args(Name) if name in wanted]
        pairs = [pair for pair in _PAIRS if pair in wanted and cores > 1]
        self._workers: dict[Runner, list[Process]] = {
            name: [stack.enter_context(_start(name, 0, scratch))] for name in names
        }
        for pair in pairs:
            second = stack.enter_context(_start(_PAIRS[pair], 1, scratch))
            self._workers[pair] = [*self._workers[_PAIRS[pair]], second]
        stack.callback(self._dismiss)
        for *_, started in self._workers.values():
            started.read()  # Ready when its imports are done; a dead one says so when asked.

    def _dismiss(self) -> None:
        """Let all end at once, before each is waited for."""
        for *_, started in self._workers.values():
            started.dismiss()

    def hold(
        self,
        contest: Contest,
        folders: Mapping[Kind, Path],
        rounds: int,
        step: Callable[[str], None],
    ) -> dict[str, Any]:
        """Let all make shards once, unmeasured, and look at them; then measure round by round.

        Returns:
            The title, and a row for each contestant.
        """
        files = folders[contest.files]
        wanted = stored_sizes(files)
        standings = [_Standing(runner) for runner in contest.runners]
        rounds *= contest.times
        for number in range(rounds + 1):
            for standing in standings:
                step(f"{contest.name}, round {number} of {rounds}: {TITLES[standing.runner]}")
                if standing.failure is None:
                    self._take_turn(standing, files, contest, wanted if number == 0 else None)
        about = {"title": contest.title, "files": len(wanted), "rounds": rounds}
        return {**about, "rows": _rows(standings, contest)}

    def _take_turn(
        self,
        standing: _Standing,
        files: Path,
        contest: Contest,
        wanted: Sequence[tuple[int, int]] | None,
    ) -> None:
        out = self._scratch / "out"
        out.mkdir()
        try:
            found = self._make(standing.runner, files, out)
            standing.failure = next((one["failure"] for one in found if "failure" in one), None)
            if standing.failure is not None:
                return
            standing.variant = found[0]["variant"]
            if wanted is None:
                standing.rounds.append(_together(found))
            elif standing.runner not in ("decode_only", "two_decoders"):
                complaints = (complaint(folder, wanted) for folder in _folders(out, len(found)))
                standing.failure = next(filter(None, complaints), None)
        finally:
            shutil.rmtree(out)

    def _make(self, runner: Runner, files: Path, out: Path) -> list[dict[str, Any]]:
        if runner not in self._workers:
            return [{"failure": "failed: two workers need two cores"}]
        workers = self._workers[runner]
        for process, folder in zip(workers, _folders(out, len(workers)), strict=True):
            folder.mkdir()
            process.tell({"files": str(files), "out": str(folder)})
        answers = [process.read() for process in workers]
        for process in workers:
            process.signal(signal.SIGSTOP)
        return answers


def _folders(out: Path, workers: int) -> list[Path]:
    """Name a folder for each of them."""
    return [out / str(number) for number in range(workers)]


def _start(name: Name, core: int, scratch: Path) -> AbstractContextManager[Process]:
    return running(["pipeline.bench.shard_worker", name, str(core)], name, scratch)


def _together(answers: Sequence[dict[str, Any]]) -> Stretch:
    """Add up what one worker did, or two at the same time."""
    return Stretch(
        images=sum(answer["images"] for answer in answers),
        seconds=max(answer["seconds"] for answer in answers),
        cpu_seconds=sum(answer["cpu_seconds"] for answer in answers),
    )


def _rows(standings: Sequence[_Standing], contest: Contest) -> list[Row]:
    rows = [_row(standing) for standing in standings]
    base = next(row for row in rows if row["name"] == contest.base)
    for row in rows:
        row["ratio"] = ratio(row, base)
        row["ratio_per_cpu_s"] = _cpu_ratio(row, base)
    return rows


def _row(standing: _Standing) -> Row:
    rounds = standing.rounds if standing.failure is None else []
    return {
        "name": standing.runner,
        "title": TITLES[standing.runner],
        "variant": standing.variant,
        "failure": standing.failure,
        "images": rounds[0].images if rounds else None,
        **speeds(rounds),
    }


def _cpu_ratio(row: Row, other: Row) -> float | None:
    if row["images_per_cpu_s"] is None or other["images_per_cpu_s"] is None:
        return None
    found: float = row["images_per_cpu_s"] / other["images_per_cpu_s"]
    return found
