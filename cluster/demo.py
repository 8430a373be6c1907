"""`tessera demo`: the whole chain with the settings of configs/demo."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.pretrain import run_pretrain
from cluster.report import add_results, read_results, run_report
from cluster.screen import Resume, bar, say
from cluster.shard import ledger_json, run_shard
from cluster.transfer import layer_table, require_all, run_transfer
from pipeline.config import ConfigError, load, override

if TYPE_CHECKING:
    from pipeline.ingest.config import ShardConfig
    from training.run import RunConfig

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
_NUM_IMAGES = 4000
_SEED = 0


def demo(
    out: Annotated[Path, typer.Option(help="New folder for everything.")] = Path("runs/demo"),
    images: Annotated[
        Path | None,
        typer.Option(help="Folder tree of your own images; default a rendered crawl."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Limit of the pretraining.", min=0.01)
    ] = None,
    resume: Resume = False,
) -> None:
    """Run the whole chain on this machine: crawl, shards, trunk, score, report.

    Example: tessera demo --images ~/pictures --out runs/pictures
    """
    run_demo(out, images, minutes, Console(), resume=resume)


def run_demo(
    out: Path, images: Path | None, minutes: float | None, console: Console, *, resume: bool
) -> None:
    """Run every stage into `out`; a resumed demo continues where it stopped.

    Args:
        out: New folder, or that of a demo to continue.
        images: Folder tree of images; None renders a synthetic crawl.
        minutes: Limit of the pretraining; None takes that of configs/demo/pretrain.yaml.
        console: Where progress goes.
        resume: Whether `out` may hold an earlier demo.

    Raises:
        ConfigError: The input does not allow a stage; if only the labels for the transfer are
            missing, every other stage is done first.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not resume:
        raise ConfigError(
            f"out (={out}) is not empty; use --resume to continue or choose another folder."
        )
    if images is not None and not images.is_dir():
        raise ConfigError(f"images (={images}) is no folder; give one that holds images.")
    from pipeline.ingest.config import ShardConfig
    from pipeline.synthetic.crawl import FOLDER_NAME
    from training.run import RunConfig

    shard_config = load(ShardConfig, CONFIGS / "shard.yaml")
    overrides = _overrides(out, minutes)
    config = load(RunConfig, CONFIGS / "pretrain.yaml", overrides)
    if images is None:
        images = out / FOLDER_NAME
        if not images.exists():
            _render(out, console)
    _shard(images, out, shard_config, console, commands=_commands(images, out, overrides))
    run_pretrain(config, console, resume=True, local=False)
    skipped = _transfer_or_reason(config, console)
    run_report([out], console)
    _last_screen(out, console)
    if skipped:
        raise ConfigError(f"the transfer was skipped: {skipped}")


def _overrides(out: Path, minutes: float | None) -> list[str]:
    """Point the demo's config at `out` and at this machine."""
    import torch

    from training.run import RunConfig, pretraining_of

    found = [override("out", str(out)), override("data.manifest", str(out / "shards"))]
    if minutes is not None:
        found.append(override("train.max_minutes", minutes))
    wanted = pretraining_of(load(RunConfig, CONFIGS / "pretrain.yaml")).train.workers
    if 0 < torch.cuda.device_count() < wanted:
        found.append(override("train.workers", torch.cuda.device_count()))
    return found


def _render(out: Path, console: Console) -> None:
    from pipeline.synthetic.crawl import render_crawl

    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with bar(console, "render", counts=True) as line:
        summary = render_crawl(
            out,
            num_images=_NUM_IMAGES,
            seed=_SEED,
            on_progress=lambda done, total: line.update(done, total, "synthetic pictures"),
        )
    add_results(out, "render", started)
    say(
        console,
        f"render: {summary.num_files} files of a synthetic crawl in {summary.root}: "
        f"{len(summary.classes)} classes, {summary.num_duplicates} duplicates, "
        f"{sum(summary.broken.values())} broken",
    )


def _shard(
    images: Path, out: Path, config: "ShardConfig", console: Console, *, commands: list[str]
) -> None:
    from pipeline.ingest.folder import ShardRequest
    from pipeline.ingest.sources.source_list import parse_sources

    started = time.monotonic()
    shards = out / "shards"
    request = ShardRequest(shards, parse_sources([str(images)], (), ()), config)
    manifest = run_shard(request, console, resume=shards.exists())
    add_results(out, "shard", started, ledger=ledger_json(manifest.ledger), commands=commands)


def _transfer_or_reason(config: "RunConfig", console: Console) -> str | None:
    """Transfer, or return why the images do not allow it: no labels, or too few of each."""
    started = time.monotonic()
    try:
        require_all(run_transfer(config, console, local=True))
    except ConfigError as error:
        add_results(config.out, "transfer", started, transfer={"skipped": str(error)})
        return str(error)
    return None


def _commands(images: Path, out: Path, overrides: list[str]) -> list[str]:
    """Return the single commands that the demo amounts to."""
    config = shlex.join(["configs/demo/pretrain.yaml", *overrides])
    return [
        shlex.join(["tessera", "shard", str(images), "--out", str(out / "shards")])
        + " --config configs/demo/shard.yaml",
        f"tessera pretrain {config}",
        f"tessera transfer {config}",
        f"tessera report {shlex.quote(str(out))}",
    ]


def _last_screen(out: Path, console: Console) -> None:
    results = read_results(out)
    scores = results["transfer"]
    console.rule("Tessera")
    if "skipped" not in scores:
        console.print(layer_table(scores))
    seconds = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in results["seconds"].items())
    say(console, f"time      {seconds}")
    for name, path in (
        ("report", out / "report.html"),
        ("results", out / "results.json"),
        ("trunk", out / "trunk.safetensors"),
        ("shards", out / "shards"),
        ("curves", f"tensorboard --logdir {out / 'tensorboard'}"),
    ):
        say(console, f"{name:<9} {path}")
