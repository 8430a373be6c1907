"""`tessera pretrain`: a trunk from shards, in this process or under Ray."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cluster.report import add_results
from cluster.screen import ConfigFile, Overrides, Resume, bar, load_run, say

if TYPE_CHECKING:
    from training.metrics import MetricsRecord
    from training.run import Pretraining, RunConfig


def pretrain(
    config: ConfigFile,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="One plain process, without Ray (torchrun works, too).")
    ] = False,
    resume: Resume = False,
) -> None:
    """Train a trunk on a pretext task; `out` is the run's folder.

    However it was stopped, the same command with --resume continues from the newest checkpoint,
    with the same samples in the same order, on any number of workers.

    Example: tessera pretrain configs/demo/pretrain.yaml train.max_minutes=1
    """
    run_pretrain(load_run(config, overrides), Console(), resume=resume, local=local)


def run_pretrain(
    config: "RunConfig", console: Console, *, resume: bool, local: bool
) -> dict[str, Any]:
    """Pretrain, under Ray or (`local`) in this process; return what pretrain.json holds.

    Raises:
        ConfigError: The config, the data or the cluster do not allow it, or the run's folder holds
            another run or is in use.
    """
    from training.pretrain import check, train
    from training.run import pretraining_of

    started = time.monotonic()
    run = pretraining_of(config)
    check(run)
    # With the number of classes, which a config may omit: reading the run needs no shards.
    config = config.model_copy(update={"pretext": run.pretext})
    if local and int(os.environ.get("RANK", "0")) > 0:  # Under torchrun: the first one reports.
        train(run)
        return {}
    with _claimed(config, resume=resume):
        _train(config, run, console, local=local)
        return _add_result(run, started, console)


@contextmanager
def _claimed(config: "RunConfig", *, resume: bool) -> Iterator[None]:
    """Hold the run's folder; a start that fails before its first record leaves no run in it.

    Raises:
        ConfigError: It is in use, or holds another run.
    """
    from pipeline.lock import lock_folder
    from training.metrics import FILE_NAME as METRICS
    from training.pretrain import CHECKPOINTS
    from training.run import open_run
    from training.run_folder import RECORD

    with lock_folder(config.out):
        before = {path.name for path in config.out.iterdir()}
        open_run(config, resume=resume)
        try:
            yield
        except BaseException:
            if not _has_begun(config.out):
                for name in (RECORD, METRICS, CHECKPOINTS, "ray", "tensorboard"):
                    if name not in before:
                        _remove(config.out / name)
            raise


def _has_begun(out: Path) -> bool:
    """Tell whether a run has left anything that a resume could use, or a person read."""
    from training.metrics import FILE_NAME
    from training.pretrain import CHECKPOINTS

    metrics = out / FILE_NAME
    has_records = metrics.exists() and metrics.stat().st_size > 0
    return has_records or any((out / CHECKPOINTS).glob("step-*"))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _train(config: "RunConfig", run: "Pretraining", console: Console, *, local: bool) -> None:
    from training.metrics import following
    from training.pretrain import train

    if console.is_terminal:
        console.print(f"pretrain: TensorBoard with  tensorboard --logdir {run.out / 'tensorboard'}")
    with bar(console, "pretrain", counts=False) as line:

        def show(record: "MetricsRecord") -> None:
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


def _add_result(run: "Pretraining", started: float, console: Console) -> dict[str, Any]:
    from pipeline.loading.quarantine import FILE_NAME as QUARANTINE_FILE
    from training.run_folder import PRETRAIN_RESULT

    result: dict[str, Any] = json.loads((run.out / PRETRAIN_RESULT).read_text())
    add_results(run.out, "pretrain", started, pretrain=result)
    say(
        console,
        f"pretrain: {result['steps']} steps, {result['epochs']:.1f} epochs, accuracy "
        f"{result['accuracy']:.1%} (chance {result['chance']:.1%}), "
        f"{result['images_per_s']:.0f} images/s, loader waits {result['starvation']:.1%}",
    )
    if result["replaced"]:
        say(
            console,
            f"pretrain: {result['replaced']} damaged samples were replaced; "
            f"{run.out / QUARANTINE_FILE} names them",
        )
    return result
