"""The stages as a person runs them: each with its bar, its result in results.json, its time."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.build_shards import build_shards
from cluster.errors import IncompleteError
from cluster.launch import following, pretrain_on_ray
from cluster.screen import bar
from cluster.session import ensure_ray
from cluster.transfer import here, transfer_on_ray
from cluster.transfer_table import last_line
from pipeline.config import ConfigError
from pipeline.crawl.folder import Job
from pipeline.crawl.stage import ShardProgress
from pipeline.quarantine import FILE_NAME as QUARANTINE_FILE
from pipeline.remote.location import is_remote, local_path, shown
from pipeline.remote.publish import check_target, publish
from pipeline.shards.manifest import Ledger, Manifest
from training.metrics import Record
from training.pretrain import RESULT_FILE, check, train
from training.report import write_report
from training.run import RunConfig, open_run, pretraining_of, write_json
from training.transfer.evaluate import Outcome, transfer

RESULTS_FILE = "results.json"


def folder_for(out: str, scratch: Path | None) -> Path:
    """Return the folder that shards are made in: `out`, or `scratch` where that is a URL.

    Raises:
        ConfigError: A URL without scratch, or that cannot be written to; a folder with scratch.
    """
    if not is_remote(out):
        if scratch is not None:
            raise ConfigError(f"scratch (={scratch}) is for URLs, out (={out}) is a folder.")
        return local_path(out)
    if scratch is None:
        raise ConfigError(
            f"out (={shown(out)}) is a URL: give a folder for the shards until they are copied, "
            "with room for all of them: --scratch DIR."
        )
    check_target(out)
    return scratch


def run_shard(
    job: Job,
    console: Console,
    *,
    resume: bool,
    address: str | None = None,
    publish_to: str | None = None,
) -> Manifest:
    """Shard the sources of `job`; prints the invariant as the last line, before it each source's.

    Args:
        job: What is made, and where.
        console: Where progress goes.
        resume: Whether the folder may hold an earlier run.
        address: Of a Ray cluster; None for this machine.
        publish_to: URL that the finished shards are copied to.
    """
    started = time.monotonic()
    with bar(console, "shard", counts=True) as line:

        def show(progress: ShardProgress) -> None:
            speed = progress.done / max(time.monotonic() - started, 1e-3)
            note = (
                f"{progress.phase}: {progress.accepted} accepted, "
                f"{progress.quarantined} quarantined, {progress.filtered} filtered, "
                + (f"{progress.duplicate} duplicate" if progress.phase == "write" else "")
                + (f"{speed:.0f} images/s" if progress.phase == "examine" else "")
            )
            line.update(progress.done, progress.total, note.rstrip(", "))

        manifest = build_shards(job, resume=resume, address=address, on_progress=show)
    if publish_to is not None:
        with bar(console, "publish", counts=False) as line:
            publish(job.out, publish_to, on_progress=line.update)
        console.print(f"publish: {shown(publish_to)}", highlight=False, soft_wrap=True)
    if len(manifest.sources) > 1:
        for name, ledger in manifest.sources.items():
            console.print(f"{name}: {ledger.describe()}", highlight=False, markup=False)
    console.print(manifest.ledger.describe(), highlight=False, soft_wrap=True)
    return manifest


def shard_json(manifest: Manifest, seconds: float) -> dict[str, Any]:
    """Return the ledger with counts by reason, of all and of each source, and the speed."""
    ledger = manifest.ledger
    return {
        **ledger.model_dump(mode="json"),
        "seconds": seconds,
        "images_per_s": ledger.inputs / seconds,
        "sources": {name: one.model_dump(mode="json") for name, one in manifest.sources.items()},
    }


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """Return totals, and beside them the counts by reason."""
    return {
        "inputs": ledger.inputs,
        "accepted": ledger.accepted,
        "quarantined": ledger.num_quarantined,
        "filtered": ledger.num_filtered,
        "duplicate": ledger.duplicate,
        "near_duplicate": ledger.near_duplicate,
        "reasons": {"quarantined": ledger.quarantined, "filtered": ledger.filtered},
    }


def run_pretrain(
    config: RunConfig, console: Console, *, resume: bool, local: bool
) -> dict[str, Any]:
    """Pretrain, under Ray or (`local`) in this process; returns what pretrain.json holds."""
    started = time.monotonic()
    run = pretraining_of(config)
    check(run)
    # With the number of classes, which a config need not say: who reads the run needs no shards.
    config = config.model_copy(update={"pretext": run.pretext})
    open_run(config, resume=resume)
    if console.is_terminal:
        console.print(f"pretrain: TensorBoard with  tensorboard --logdir {run.out / 'tensorboard'}")
    with bar(console, "pretrain", counts=False) as line:

        def show(record: Record) -> None:
            note = (
                f"step {record.step}, loss {record.loss:.3f}, accuracy {record.accuracy:.1%}, "
                f"{record.images_per_s:.0f} images/s"
            )
            line.update(record.progress, 1, note)

        if local:
            with following(config, show):
                train(run)
        else:
            ensure_ray()
            pretrain_on_ray(config, show)
    result: dict[str, Any] = json.loads((run.out / RESULT_FILE).read_text())
    add_results(run.out, "pretrain", started, pretrain=result)
    console.print(
        f"pretrain: {result['steps']} steps, {result['epochs']:.1f} epochs, accuracy "
        f"{result['accuracy']:.1%} (chance {result['chance']:.1%}), "
        f"{result['images_per_s']:.0f} images/s, loader waits {result['starvation']:.1%}",
        highlight=False,
        soft_wrap=True,
    )
    if result["replaced"]:
        console.print(
            f"pretrain: {result['replaced']} damaged samples were replaced; "
            f"{run.out / QUARANTINE_FILE} names them",
            highlight=False,
            soft_wrap=True,
        )
    return result


def run_transfer(config: RunConfig, console: Console, *, local: bool) -> Outcome:
    """Run every job on every trunk, under Ray or (`local`) in this process.

    Raises:
        ConfigError: The transfer can not begin.
    """
    started = time.monotonic()
    with bar(console, "transfer", counts=True) as line:

        def show(what: str, done: int, total: int) -> None:
            line.update(done, total, what)

        found = transfer(config, here(), show) if local else transfer_on_ray(config, show)
    kept = found.summary or {"results": found.entries}
    add_results(config.out, "transfer", started, transfer=kept)
    for note in found.notes:
        console.print(f"transfer: {note}", highlight=False, soft_wrap=True)
    for pair, count in found.overlap.items():
        if count:
            first, second = pair.split("/")
            console.print(
                f"transfer: {count} images of {second} are in {first}, too", highlight=False
            )
    console.print(last_line(found.entries), highlight=False, soft_wrap=True)
    return found


def require_all(found: Outcome) -> None:
    """Refuse a transfer of which a part failed; results of the others are kept.

    Raises:
        ConfigError: All that failed can be mended in the config.
        IncompleteError: Something failed for another reason.
    """
    failures = found.failures
    if not failures:
        return
    lines = [f"{name} ({str(error) or type(error).__name__})" for name, error in failures.items()]
    text = f"{' '.join('; '.join(lines).split())}. The results of the other jobs are kept."
    if all(isinstance(error, ConfigError) for error in failures.values()):
        raise ConfigError(text)
    raise IncompleteError(f"failed: {text} The same command runs only what is missing.")


def run_report(runs: Sequence[Path], console: Console, *, out: Path | None = None) -> Path:
    """Write the report of a run, or of several side by side; `out` is the page."""
    started = time.monotonic()
    with console.status("report"):
        path = write_report(runs, lambda _: None, out)
    if len(runs) == 1:
        add_results(runs[0], "report", started, report=path.name)
    console.print(f"report: {path}", highlight=False, soft_wrap=True)
    return path


def add_results(out: Path, stage: str, started: float, **parts: Any) -> None:
    """Merge a stage's results, and its seconds since `started`, into results.json."""
    results = read_results(out)
    seconds = {**results.get("seconds", {}), stage: round(time.monotonic() - started, 1)}
    write_json(out / RESULTS_FILE, {**results, **parts, "seconds": seconds})


def read_results(out: Path) -> dict[str, Any]:
    """Read results.json, empty where there is none yet."""
    path = out / RESULTS_FILE
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results
