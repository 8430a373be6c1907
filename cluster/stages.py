"""The stages as a person runs them: each with its bar, its result in results.json, its time."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.errors import IncompleteError
from cluster.screen import bar
from cluster.transfer_table import last_line
from pipeline.atomic import write_json
from pipeline.config import ConfigError
from pipeline.loading.quarantine import FILE_NAME as QUARANTINE_FILE
from training.metrics import MetricsRecord, following
from training.pretrain import check, train
from training.report.page import write_report
from training.run import RunConfig, open_run, pretraining_of
from training.run_folder import PRETRAIN_RESULT
from training.transfer.evaluate import Outcome, here, transfer

# Ray is imported where it is used: what runs in this process need not wait seconds for it.

RESULTS_FILE = "results.json"


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

        def show(record: MetricsRecord) -> None:
            note = (
                f"step {record.step}, loss {record.loss:.3f}, accuracy {record.accuracy:.1%}, "
                f"{record.images_per_s:.0f} images/s"
            )
            line.update(record.progress, 1, note)

        if local:
            with following(run.out, show):
                train(run)
        else:
            from cluster.launch import pretrain_on_ray
            from cluster.session import ensure_ray

            ensure_ray()
            pretrain_on_ray(config, show)
    result: dict[str, Any] = json.loads((run.out / PRETRAIN_RESULT).read_text())
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

        if local:
            found = transfer(config, here(), show)
        else:
            from cluster.transfer import transfer_on_ray

            found = transfer_on_ray(config, show)
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
