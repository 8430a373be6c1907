"""`tessera explain`: what a step of a run showed, on the screen, as pictures and as JSON."""

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import assert_never

from cluster.screen import JsonFile, Overrides, load_run, say
from pipeline.atomic import write_json
from pipeline.config import ConfigError
from pipeline.remote.location import is_remote, local_path, redact_url

if TYPE_CHECKING:
    from pipeline.explain.locate import SampleLocations
    from pipeline.explain.step import Explained, ShownSample, Subject
    from pipeline.loading.mixture import RankInfo
    from pipeline.pretext.jigsaw import Foreign
    from pipeline.pretext.multitask import AnyDraws
    from training.run import RunConfig

WIDTH = 100
"""Columns of the table."""

_TWO_WAYS = (
    "give the folder of a run (tessera explain runs/demo ...), or shards and the config that names "
    "order, seed and pretext (tessera explain SHARDS --config configs/demo/pretrain.yaml ...)."
)


def explain(  # noqa: PLR0913 - one for each option
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="The folder of a run; or a folder of shards, the manifest in it, or its URL, with "
            "--config.",
        ),
    ],
    epoch: Annotated[int, typer.Option(min=0, help="Counts from 0.")],
    overrides: Overrides = None,
    step: Annotated[
        int | None,
        typer.Option(help="Show all samples of this step of the epoch; counts from 0."),
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(
            metavar="KEY_OR_ID",
            help="Show where one sample appears in the epoch instead; key:123 is a key, 123 an id.",
        ),
    ] = None,
    rank: Annotated[
        str | None,
        typer.Option(metavar="r/R", help="Show only what rank r of R ranks reads of the step."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="A run's YAML, which gives order, seed and pretext."),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Draw every sample with its views into a new folder; see step.png."
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """List what a step showed: samples, where their bytes lie, every random draw.

    The loader itself makes the step again, so it is what the network saw, on any number of ranks.

    Example: tessera explain runs/demo --epoch 0 --step 12 --save step12/
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    run = run_of(manifest, config, overrides)
    question = Question(epoch, step, sample, rank)
    run_explain(run, question, ExplainOutput(save, json_file), console)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: about a step, or about a sample."""

    epoch: int
    step: int | None
    sample: str | None
    """An id or a key."""
    rank: str | None
    """r/R; None for all ranks."""


@dataclass(frozen=True, slots=True)
class ExplainOutput:
    """Where the answer goes, other than the screen."""

    save: Path | None
    """New folder for pictures."""
    json_file: Path | None


def run_explain(
    run: "RunConfig", question: Question, answers: ExplainOutput, console: Console
) -> None:
    """Print what a step showed, or where a sample appears; save pictures and JSON as asked.

    Raises:
        ConfigError: There is no such step, rank or sample.
        DamageError: A sample is damaged, and the run's policy is to stop.
    """
    from pipeline.explain.locate import find_sample, sample_id_of
    from pipeline.explain.step import explain_sample, explain_step, open_subject

    info = _rank_info(question)
    if answers.save and answers.save.exists() and any(answers.save.iterdir()):
        raise ConfigError(f"save (={answers.save}) is not empty; give a new folder for pictures.")
    assert run.order is not None
    assert run.pretext is not None
    sets = ", ".join(redact_url(one.manifest) for one in run.data.sets)
    with closing(open_subject(run.data, run.order, run.pretext, seed=run.seed)) as subject:
        if question.step is not None:
            explained = explain_step(subject, question.epoch, question.step, info)
            steps, listed = [explained], explained.listed()
            last = _last_of_step(explained)
        else:
            assert question.sample is not None
            sample_id = sample_id_of(subject.data, question.sample)
            found = find_sample(subject.data, question.epoch, sample_id)
            steps = explain_sample(subject, found, question.epoch)
            listed = _listed(found, question.epoch, steps)
            last = _last_of_sample(subject, found, question)
        for explained in steps:
            say(console, _first(explained, sets))
            console.print(table_of(explained))
        if answers.save:
            _save(answers.save, steps, subject, sets, console)
    if answers.json_file:
        write_json(answers.json_file, {"data": [one.manifest for one in run.data.sets], **listed})
    say(console, last)


def run_of(target: str, config: Path | None, overrides: Sequence[str] | None) -> "RunConfig":
    """Find order, seed, pretext and data: of a run's folder, or of shards and a config.

    Raises:
        ConfigError: The target is neither, or what it needs is missing.
    """
    folder = None if is_remote(target) else local_path(target)
    if folder is not None and (folder / "config.yaml").exists():
        if config or overrides:
            raise ConfigError(
                f"run (={target}) has the config that it was made with: drop --config and "
                "key.path=value, or give its shards instead of the run."
            )
        from training.run import read_run

        return _complete(read_run(folder), target)
    if folder is not None and not folder.exists():
        raise ConfigError(f"manifest (={target}) does not exist; {_TWO_WAYS}")
    from pipeline.shards.manifest import FILE_NAME

    if folder is not None and folder.is_dir() and not (folder / FILE_NAME).exists():
        raise ConfigError(
            f"folder (={target}) holds neither the config.yaml of a run nor the {FILE_NAME} of "
            f"shards; {_TWO_WAYS}"
        )
    if config is None:
        raise ConfigError(f"manifest (={target}) alone has no order; {_TWO_WAYS}")
    run = load_run(config, overrides)
    alone = {"manifest": target, "mixture": None, "stream": None}
    return _complete(run.model_copy(update={"data": run.data.model_copy(update=alone)}), config)


def table_of(explained: "Explained") -> Table:
    """Return the table of samples, several lines each, in `WIDTH` columns."""
    table = Table(width=WIDTH, show_lines=True)
    table.add_column("place", justify="right", width=8)
    table.add_column("sample", width=20, overflow="fold")
    table.add_column("stored", width=22, overflow="fold")
    table.add_column("draws", overflow="fold")
    for shown in explained.samples:
        table.add_row(*(Text("\n").join(cell) for cell in _cells(shown, explained)))
    return table


def _complete(run: "RunConfig", source: str | Path) -> "RunConfig":
    for name in ("order", "pretext"):
        if getattr(run, name) is None:
            raise ConfigError(
                f"{name} is missing in {source}: there is no step to explain without this section."
            )
    return run


def _rank_info(question: Question) -> "RankInfo":
    from pipeline.loading.mixture import RankInfo

    if (question.step is None) == (question.sample is None):
        raise ConfigError(
            "give either --step S, for the samples of a step, or --sample KEY_OR_ID, for one "
            "sample of the epoch."
        )
    text = question.rank
    if text is None:
        return RankInfo(0, 1)
    if question.sample is not None:
        raise ConfigError(
            f"rank (={text}) goes with --step: of R ranks, rank (lane % R) reads a sample."
        )
    given = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not given:
        raise ConfigError(f"rank (={text}) must have the form r/R; 0/4 is the first of 4 ranks.")
    rank, world_size = int(given[1]), int(given[2])
    if rank >= world_size:
        raise ConfigError(
            f"rank (={text}) must be less than the number of ranks: they count from 0; 0/4 is the "
            "first of 4 ranks."
        )
    return RankInfo(rank, world_size)


def _cells(shown: "ShownSample", explained: "Explained") -> list[list[Text]]:
    from pipeline.explain.pictures.lettering import shorten

    seat, where = shown.slot, shown.shard.rpartition("/")[2]
    place = [Text(str(seat.position), "bold"), Text(f"lane {seat.lane}", "dim")]
    if (seat.set_number, seat.set_epoch) != (0, explained.epoch):
        place += [Text(f"set {seat.set_number}", "dim"), Text(f"epoch {seat.set_epoch}", "dim")]
    sample = [Text(shorten(shown.key, 20), "bold"), Text(f"id {shown.sample_id}")]
    if shown.label:
        sample.append(Text(shorten(shown.label, 20)))
    if shown.instead_of:
        bad = shown.instead_of
        sample.append(Text(f"stands in for damaged {bad.sample_id} ({bad.reason})", "red"))
    stored = [
        Text(shorten(where, 22)),
        Text(f"at {shown.offset}"),
        Text(f"{shown.num_bytes} B, {shown.width} x {shown.height} px"),
    ]
    names = explained.task_names if len(explained.task_names) > 1 else ("",)
    pairs = zip(names, shown.draws, strict=True)
    return [place, sample, stored, [line for pair in pairs for line in draw_lines(*pair)]]


def _first(explained: "Explained", sets: str) -> str:
    place = explained.rank_info
    whose = "all ranks" if place.world_size == 1 else f"rank {place.rank} of {place.world_size}"
    return (
        f"data set {sets}, fingerprint {explained.fingerprint}: epoch {explained.epoch}, step "
        f"{explained.step}, {whose}; {explained.steps_per_epoch} steps per epoch, remainder "
        f"{explained.remainder} samples"
    )


def _last_of_step(explained: "Explained") -> str:
    count, place = len(explained.samples), explained.rank_info
    at = f"step {explained.step} of {explained.steps_per_epoch}, epoch {explained.epoch}"
    replaced = sum(shown.instead_of is not None for shown in explained.samples)
    stand_in = f" ({replaced} in place of damaged ones)" if replaced else ""
    if place.world_size == 1:
        return (
            f"{count} samples{stand_in} of {at}; the same for every number of ranks up to "
            f"{explained.num_lanes}"
        )
    return (
        f"{count} samples{stand_in} of rank {place.rank} of {place.world_size} in {at}; all ranks "
        f"together show the same for every number of ranks up to {explained.num_lanes}"
    )


def _last_of_sample(subject: "Subject", found: "SampleLocations", question: Question) -> str:
    data, epoch = subject.data, question.epoch
    name = f"sample {found.sample_id}"
    if question.sample != str(found.sample_id):
        name += f" ({question.sample})"
    if found.appearances:
        places = "; ".join(
            f"step {a.step} of {data.steps_per_epoch}, lane {a.lane}, position {a.position}"
            for a in found.appearances
        )
        return (
            f"{name} appears in epoch {epoch} at {places}; of R ranks, up to {data.num_lanes}, "
            "rank (lane % R) reads it"
        )
    if found.left_over:
        return (
            f"{name} does not appear in epoch {epoch}: it falls into the remainder, the "
            f"{data.remainder} samples that fill no step; another epoch omits others"
        )
    return (
        f"{name} does not appear in epoch {epoch}: its set reaches it in another epoch of the run"
    )


def _listed(found: "SampleLocations", epoch: int, steps: Sequence["Explained"]) -> dict[str, Any]:
    listed = [step.listed() for step in steps]
    return {
        "sample_id": found.sample_id,
        "epoch": epoch,
        "left_over": found.left_over,
        "steps": listed,
    }


def _save(
    folder: Path, steps: Sequence["Explained"], subject: "Subject", sets: str, console: Console
) -> None:
    from pipeline.explain.pictures.step import save_pictures

    for explained in steps:
        own = folder if len(steps) == 1 else folder / f"step-{explained.step}"
        own.mkdir(parents=True, exist_ok=True)
        about = f"Data set {sets} ({explained.fingerprint})"
        sheet = save_pictures(own, explained, subject.pretext, about)
        say(console, f"pictures: {sheet}, and one of each sample beside it")


def draw_lines(task: str, draws: "AnyDraws") -> list[Text]:
    """Return the draws of one task, below its name if there are several."""
    top, left, side = draws.crop
    mirrored = ", mirrored" if draws.mirrored else ""
    lines = [Text(task, "bold")] if task else []
    lines.append(Text(f"crop top {top} left {left} side {side}{_color(draws)}{mirrored}"))
    if len(draws.tiles) > 1:
        lines.append(_line("tiles", [f"{y},{x}" for y, x in draws.tiles]))
    if len(set(draws.colors)) > 1:
        lines.append(_line("colors", draws.colors))
    if draws.shifts:
        shifts = ["/".join(f"{y},{x}" for y, x in tile) for tile in draws.shifts]
        lines.append(_line("shifts of red/green/blue", shifts))
    if draws.intensity:
        lines.append(_line("intensity", ["/".join(map(str, tile)) for tile in draws.intensity]))
    if draws.sides:
        lines.append(_line("sides", list(map(str, draws.sides))))
    if draws.noise:
        lines.append(_line("noise", [f"{y},{x}" for y, x in draws.noise]))
    return lines + _asked(draws)


def _color(draws: "AnyDraws") -> str:
    if len(set(draws.colors)) > 1:
        return ""
    return ", " + {"rgb": "color"}.get(draws.colors[0], draws.colors[0])


def _asked(draws: "AnyDraws") -> list[Text]:
    from pipeline.pretext.context import ContextDraws
    from pipeline.pretext.jigsaw import JigsawDraws
    from pipeline.pretext.rotation import RotationDraws
    from pipeline.pretext.supervised import SupervisedDraws

    match draws:
        case JigsawDraws():
            lines = [_line("permutations", list(map(str, draws.permutations)))]
            if any(draws.foreign):
                lines.append(_line("foreign", [_foreign(puzzle) for puzzle in draws.foreign]))
            return lines
        case ContextDraws():
            pairs = [f"{p.first + 1}>{p.second + 1}:{p.direction}" for p in draws.pairs]
            return [_line("pairs", pairs)]
        case RotationDraws():
            return [_line("turns", list(map(str, draws.turns)))]
        case SupervisedDraws():
            return [_line("class", [str(draws.taught) if draws.taught >= 0 else "not taught"])]
        case _:
            assert_never(draws)


def _foreign(puzzle: tuple["Foreign", ...]) -> str:
    return "+".join(f"{one.place + 1}<{one.position}.{one.tile + 1}" for one in puzzle) or "-"


def _line(name: str, words: list[str] | tuple[str, ...]) -> Text:
    return Text.assemble((f"{name} ", "dim"), " ".join(words))
