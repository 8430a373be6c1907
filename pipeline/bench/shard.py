"""The bench of the shard stage: contests of making shards, growth, one result."""

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.bench.contest import (
    Process,
    Progress,
    Row,
    Show,
    Standing,
    Steps,
    contest_table,
    cpu_ratio,
    last_line,
    load_note,
    measure_table,
    named,
    ratio,
    start,
    take_turns,
)
from pipeline.bench.inputs import Kind, Numbers, complaint, make_inputs, stored_sizes
from pipeline.bench.machine import describe_machine
from pipeline.bench.plan_growth import measure_plan
from pipeline.bench.shard_measures import measure_growth
from pipeline.bench.shard_peers import Name
from pipeline.config import ConfigError

ContestName = Literal["reencode", "small", "png", "passthrough", "scaling", "scaling_limit"]
Runner = Name | Literal["two_workers", "two_decoders"]


@dataclass(frozen=True, slots=True)
class Contest:
    """A contest, shown as one table."""

    name: ContestName
    title: str
    files: Kind
    runners: tuple[Runner, ...]
    base: Runner
    """The contender that ratios compare with."""
    times: int = 1
    """Multiplies the rounds: other programs disturb short ones more."""


CONTESTS = (
    Contest(
        "reencode",
        "Photographs of 1,500 px, reduced to 512 px and re-encoded as 4:2:0",
        "large",
        ("tessera", "tessera_near", "tessera_444", "tessera_shards", "img2dataset", "webdataset"),
        "img2dataset",
    ),
    Contest(
        "small",
        "Photographs that fit: peers re-encode, ours stores the image data unchanged",
        "small",
        ("tessera", "tessera_near", "img2dataset", "webdataset"),
        "img2dataset",
    ),
    Contest(
        "png",
        "PNG copies of them, which all encode as 4:2:0",
        "png",
        ("tessera", "tessera_near", "tessera_444", "img2dataset", "webdataset"),
        "img2dataset",
    ),
    Contest(
        "passthrough",
        "Photographs stored unchanged, against the strict decode alone",
        "small",
        ("tessera_near", "tessera_shards", "copy", "decode_only"),
        "decode_only",
        times=3,
    ),
    Contest(
        "scaling",
        "Photographs of 1,500 px by one worker, then by two, each taking all on its own core",
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
FULL = Numbers(small=1_000, large=200, png=200)
QUICK = Numbers(small=150, large=24, png=40)
_ROUNDS, _QUICK_ROUNDS = 5, 3
_LEFT_TO_THE_FULL_RUN = ("tessera", "tessera_444", "tessera_shards", "webdataset")
_GROWTH_FROM = 1_000
_GROWTH_TO = 100_000
_RATIOS = {
    "ratio_to_img2dataset": ("reencode", "tessera_near"),
    "ratio_to_img2dataset_small": ("small", "tessera_near"),
    "ratio_to_img2dataset_png": ("png", "tessera_near"),
    "ratio_passthrough_to_decode_only": ("passthrough", "tessera_near"),
    "ratio_two_workers": ("scaling", "two_workers"),
    "limit_two_workers": ("scaling_limit", "two_decoders"),
}
_TABLE_RATIOS = {"ratio": "ratio", "ratio per CPU s": "ratio_per_cpu_s"}
PHRASES = {
    key: text.replace("RATIO", f"{{{key}:.2f}} ({{{key}_per_cpu_s:.2f}} per CPU s)")
    for key, text in {
        "ratio_to_img2dataset": "RATIOx {img2dataset} re-encoding",
        "ratio_passthrough_to_decode_only": "RATIO of the strict decode only",
        "ratio_two_workers": "two workers RATIOx one",
        "limit_two_workers": "two strict decodes RATIOx one",
    }.items()
}
"""What the last line says of the headline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardBench:
    """What is measured, and on which images."""

    data: Path
    """Folder of images or of shards."""
    numbers: Numbers
    rounds: int
    everyone: bool
    """Whether variants of ours and the weaker peer take part, too."""
    growth: tuple[int, ...]
    """Numbers of inputs, ascending; empty where growth is not measured."""
    plan: tuple[int, ...]
    """Likewise, of synthetic inputs that are only planned."""
    cores: int

    @property
    def contests(self) -> tuple[Contest, ...]:
        """What is held, in order."""
        excluded = () if self.everyone else _LEFT_TO_THE_FULL_RUN
        return tuple(
            replace(one, runners=tuple(name for name in one.runners if name not in excluded))
            for one in CONTESTS
        )


def make_options(data: Path, *, quick: bool, growth: int | None, plan: int | None) -> ShardBench:
    """Check the options of the command line.

    Args:
        data: Folder of images or of shards.
        quick: Few images, few rounds, the strongest peers, and no growth unless it is asked for.
        growth: Most inputs of that measure; None for the default.
        plan: Most synthetic inputs of that measure; None for no such measure.

    Raises:
        ConfigError: `growth` or `plan` is too small.
    """
    return ShardBench(
        data=data,
        numbers=QUICK if quick else FULL,
        rounds=_QUICK_ROUNDS if quick else _ROUNDS,
        everyone=not quick,
        growth=_steps("growth", (None if quick else _GROWTH_TO) if growth is None else growth),
        plan=_steps("plan", plan),
        cores=len(os.sched_getaffinity(0)),
    )


def _steps(name: str, most: int | None) -> tuple[int, ...]:
    """Return tenfold steps up to `most`."""
    if most is None:
        return ()
    if most < _GROWTH_FROM:
        raise ConfigError(f"{name} (={most}) must be at least {_GROWTH_FROM}; raise it.")
    steps = [_GROWTH_FROM]
    while steps[-1] * 10 <= most:
        steps.append(steps[-1] * 10)
    return tuple(steps)


def bench_shard(options: ShardBench, on_progress: Progress, show: Show) -> dict[str, Any]:
    """Measure what the options ask for.

    Args:
        options: What is measured.
        on_progress: Called with steps done, steps in all, and what is being done.
        show: Called with each table as it is ready, and with the last line.

    Returns:
        The headline, a section for each contest, growth, the plan, and what the numbers depend on.

    Raises:
        ConfigError: `data` is not there, or holds too few usable images.
    """
    load = os.getloadavg()[0]
    contests = _hold_all(options, on_progress, show)
    found: dict[str, Any] = {**headline(contests), "load": load, "cores": options.cores}
    found |= {**describe_machine(), **contests}
    if options.growth:
        with tempfile.TemporaryDirectory(prefix="tessera-bench-") as scratch:
            growth = measure_growth(options.growth, Path(scratch), options.cores, on_progress)
        found["growth"] = growth
        show(measure_table("growth", growth))
    if options.plan:
        with tempfile.TemporaryDirectory(prefix="tessera-bench-") as scratch:
            plan = measure_plan(options.plan, Path(scratch), on_progress)
        found["plan"] = plan
        show(measure_table("plan", plan))
    note = load_note(load, options.cores)
    if note:
        show(note)
    show(last_line(found, PHRASES))
    return found


def _hold_all(options: ShardBench, on_progress: Progress, show: Show) -> dict[str, Any]:
    contests = options.contests
    total = sum((options.rounds * one.times + 1) * len(one.runners) for one in contests)
    step = Steps(on_progress, total)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tessera-bench-") as name, ExitStack() as stack:
        scratch = Path(name)
        step.within("making images")
        folders = make_inputs(options.data, scratch, options.numbers)
        step.within("starting")
        runners = {runner for contest in contests for runner in contest.runners}
        teams = _start(stack, scratch, runners, cores=options.cores)
        for contest in contests:
            files = folders[contest.files]
            measured = _hold(contest, teams, files, options.rounds, step)
            counts = f"{measured['files']} files; medians of {measured['rounds']} rounds"
            title = f"{contest.title}\n{counts}, all in turn"
            table = contest_table(title, measured["rows"], _TABLE_RATIOS)
            table.caption = f"ratios to {TITLES[contest.base]}"
            show(table)
            found[contest.name] = measured
    return found


def _start(
    stack: ExitStack, scratch: Path, runners: Collection[Runner], *, cores: int
) -> dict[Runner, list[Process]]:
    """Start the processes of all contenders, once for all contests.

    With 1 core, two workers would share it: they are excluded then.
    """
    names = [name for name in get_args(Name) if name in runners]
    pairs = [pair for pair in _PAIRS if pair in runners and cores > 1]
    jobs = [{"name": name, "core": 0} for name in names]
    jobs += [{"name": _PAIRS[pair], "core": 1} for pair in pairs]
    processes = iter(start(stack, "pipeline.bench.shard_peers:contend", jobs, scratch))
    teams: dict[Runner, list[Process]] = {name: [next(processes)] for name in names}
    return teams | {pair: [*teams[_PAIRS[pair]], next(processes)] for pair in pairs}


def _hold(
    contest: Contest,
    teams: Mapping[Runner, Sequence[Process]],
    files: Path,
    rounds: int,
    step: Steps,
) -> dict[str, Any]:
    """Let all make shards once, unmeasured, and check them; then measure round by round.

    Returns:
        The title, and a row for each contender.
    """
    wanted, rounds = stored_sizes(files), rounds * contest.times
    alone = "failed: two workers need two cores"
    standings = [
        Standing(one, TITLES[one], teams.get(one, ()), failure=None if one in teams else alone)
        for one in contest.runners
    ]
    for number in range(rounds + 1):
        turn = partial(_take_turn, files=files, wanted=None if number else wanted)
        take_turns(standings, f"{contest.name}, round {number} of {rounds}", turn, step)
    rows = [_row(standing) for standing in standings]
    base = next(row for row in rows if row["name"] == contest.base)
    for row in rows:
        row["ratio"], row["ratio_per_cpu_s"] = ratio(row, base), cpu_ratio(row, base)
    return {"title": contest.title, "files": len(wanted), "rounds": rounds, "rows": rows}


def _take_turn(standing: Standing, files: Path, wanted: Sequence[tuple[int, int]] | None) -> None:
    """Let a contender make shards; check them where `wanted` is given, else add a round."""
    with tempfile.TemporaryDirectory(dir=files.parent, prefix="out-") as name:
        folders = [Path(name) / str(number) for number in range(len(standing.processes))]
        for folder in folders:
            folder.mkdir()
        answers = standing.ask(*({"files": str(files), "out": str(one)} for one in folders))
        if wanted is None:
            standing.add(answers)
        elif answers:
            standing.setting = answers[0]["setting"]
            if standing.name not in ("decode_only", "two_decoders"):
                complaints = (complaint(folder, wanted) for folder in folders)
                standing.failure = next(filter(None, complaints), None)


def _row(standing: Standing) -> Row:
    rounds = standing.rounds if standing.failure is None else []
    return {
        "name": standing.name,
        "title": standing.title,
        "variant": standing.setting,
        "failure": standing.failure,
        "images": rounds[0].images if rounds else None,
        **standing.speeds(),
    }


def headline(contests: dict[str, Any]) -> dict[str, Any]:
    """Return what the JSON has at its top; a ratio is None where a side of it did not run.

    They are about our parts with default settings but for chroma, which is the peers'; beyond the
    peers' work, parts hold near-duplicate hashes, thumbnails and a table of inputs. Each is given
    twice: in wall-clock time, which other programs disturb, and in CPU time, which sees no waiting;
    the latter is 1 for two workers where an image costs no more than with one.
    """
    theirs = named(contests["reencode"]["rows"], "img2dataset") or {}
    found = {"img2dataset": theirs.get("variant") or None}
    for key, (contest, name) in _RATIOS.items():
        row = named(contests[contest]["rows"], name) or {}
        found[key] = row["ratio"]
        found[f"{key}_per_cpu_s"] = row["ratio_per_cpu_s"]
    return found
