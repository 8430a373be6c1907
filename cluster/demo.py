"""The whole chain with the settings of configs/demo: crawl, shards, trunk, score, report."""

import shlex
import time
from pathlib import Path

import torch
from rich.console import Console

from cluster.screen import bar
from cluster.shard_stage import ledger_json, run_shard
from cluster.stages import (
    add_results,
    read_results,
    require_all,
    run_pretrain,
    run_report,
    run_transfer,
)
from cluster.transfer_table import layer_table
from pipeline.config import ConfigError, load, override
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.sources.source_list import parse_sources
from pipeline.synthetic.crawl import FOLDER_NAME, render_crawl
from training.run import RunConfig, pretraining_of

CONFIGS = Path(__file__).parent.parent / "configs" / "demo"
_NUM_IMAGES = 4000
_SEED = 0


def demo(
    out: Path, images: Path | None, minutes: float | None, console: Console, *, resume: bool
) -> None:
    """Run every stage into `out`; a resumed demo goes on where it stopped.

    Args:
        out: New folder, or that of a demo to go on with.
        images: Folder tree of images; None renders a synthetic crawl.
        minutes: Bound of the pretraining; None takes that of configs/demo/pretrain.yaml.
        console: Where progress goes.
        resume: Whether `out` may hold an earlier demo.

    Raises:
        ConfigError: The input does not allow a stage; where only the labels for the transfer are
            missing, everything else is done before.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not resume:
        raise ConfigError(
            f"out (={out}) is not empty; use --resume to go on or choose another folder."
        )
    if images is not None and not images.is_dir():
        raise ConfigError(f"images (={images}) is no folder; give one that holds images.")
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
    found = [override("out", str(out)), override("data.manifest", str(out / "shards"))]
    if minutes is not None:
        found.append(override("train.max_minutes", minutes))
    wanted = pretraining_of(load(RunConfig, CONFIGS / "pretrain.yaml")).train.workers
    if 0 < torch.cuda.device_count() < wanted:
        found.append(override("train.workers", torch.cuda.device_count()))
    return found


def _render(out: Path, console: Console) -> None:
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
    console.print(
        f"render: {summary.num_files} files of a synthetic crawl in {summary.root}: "
        f"{len(summary.classes)} classes, {summary.num_duplicates} duplicates, "
        f"{sum(summary.broken.values())} broken",
        highlight=False,
    )


def _shard(
    images: Path, out: Path, config: ShardConfig, console: Console, *, commands: list[str]
) -> None:
    started = time.monotonic()
    shards = out / "shards"
    job = ShardRequest(shards, parse_sources([str(images)], (), ()), config)
    manifest = run_shard(job, console, resume=shards.exists())
    add_results(out, "shard", started, ledger=ledger_json(manifest.ledger), commands=commands)


def _transfer_or_reason(config: RunConfig, console: Console) -> str | None:
    """Transfer, or return why the images allow none: no labels, or too few of each."""
    started = time.monotonic()
    try:
        require_all(run_transfer(config, console, local=True))
    except ConfigError as error:
        add_results(config.out, "transfer", started, transfer={"skipped": str(error)})
        return str(error)
    return None


def _commands(images: Path, out: Path, overrides: list[str]) -> list[str]:
    """Return the single commands that do what the demo does."""
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
    console.print(f"time      {seconds}", highlight=False)
    for name, path in (
        ("report", out / "report.html"),
        ("results", out / "results.json"),
        ("trunk", out / "trunk.safetensors"),
        ("shards", out / "shards"),
        ("curves", f"tensorboard --logdir {out / 'tensorboard'}"),
    ):
        console.print(f"{name:<9} {path}", highlight=False, soft_wrap=True)
