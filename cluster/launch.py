"""Under Ray: pretraining by Ray Train, and a transfer whose every job on a trunk is a task."""

import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch

from cluster.session import ensure_ray
from cluster.tasks import collect, end_tasks
from pipeline.atomic import write_json
from pipeline.config import ConfigError, parse
from pipeline.loading.piped import STDIN
from pipeline.shards.damage import DamageError
from training.faults import (
    ENDED_FILE,
    STOP_FILE,
    DivergedError,
    StoppedError,
    stop_signals,
)
from training.metrics import OnRecord, following
from training.pretrain import check, train
from training.run import RunConfig, absolute, pretraining_of
from training.transfer.config import ResourcesConfig
from training.transfer.evaluate import (
    JobOnTrunk,
    Opened,
    Outcome,
    finish,
    here,
    make_features,
    open_transfer,
    run_pair,
)
from training.transfer.job import Progress

if TYPE_CHECKING:
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchTrainer

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_COLLECTIVE_TIMEOUT_SECONDS = 300  # The default of 1800 makes a lost rank look like slow training.


def pretrain_on_ray(config: RunConfig, on_record: OnRecord) -> None:
    """Pretrain with `train.workers` processes of the Ray that is connected.

    The run continues from its newest checkpoint, also after a failure (`train.max_failures`).

    Raises:
        ConfigError: The config, the data or the cluster's resources do not allow the run.
        DamageError: A worker met damaged data.
    """
    import ray.train  # It brings pandas, which a transfer can do without.
    from ray.train.torch import TorchConfig, TorchTrainer

    run = pretraining_of(config)
    check(run)
    if run.data.stream and STDIN in run.data.stream.urls:
        raise ConfigError(
            f"data.stream.url (={STDIN}) is standard input, which Ray's workers do not have; add "
            "--local, or name files or a pipe:."
        )
    use_gpu = _require_resources(run.train.workers)
    trainer = TorchTrainer(
        _pretrain_worker,
        train_loop_config=absolute(config).model_dump(mode="json"),
        torch_config=TorchConfig(
            backend="nccl" if use_gpu else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_SECONDS
        ),
        scaling_config=ray.train.ScalingConfig(num_workers=run.train.workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(run.out.absolute() / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=run.train.max_failures),
        ),
    )
    try:
        with following(config.out, on_record):
            _fit(trainer, run.out)
    except ray.train.TrainingFailedError as error:
        _explain(error)
        raise
    _raise_ended(run.out)


def _fit(trainer: "TorchTrainer", out: Path) -> None:
    """Train in a thread, where Ray takes no signals, and pass a request to stop to the workers.

    Raises:
        KeyboardInterrupt: A second Ctrl-C.
    """
    done: Future[object] = Future()

    def fit() -> None:
        try:
            done.set_result(trainer.fit())
        except BaseException as error:
            done.set_exception(error)

    with stop_signals() as asked:
        threading.Thread(target=fit, name="ray-train", daemon=True).start()
        while not wait([done], _POLL_SECONDS).done:
            if asked() and not (out / STOP_FILE).exists():
                (out / STOP_FILE).touch()
    done.result()


def _pretrain_worker(raw: dict[str, Any]) -> None:
    run = pretraining_of(parse(RunConfig, raw, "config"))
    try:
        train(run)
    except (StoppedError, DivergedError) as error:  # An exception would make Ray start again.
        write_json(run.out / ENDED_FILE, {"kind": type(error).__name__, "message": str(error)})


def _raise_ended(out: Path) -> None:
    """Raise what ended the workers before their time."""
    if (out / ENDED_FILE).exists():
        ended = json.loads((out / ENDED_FILE).read_text())
        kind = StoppedError if ended["kind"] == StoppedError.__name__ else DivergedError
        raise kind(ended["message"])


def _require_resources(workers: int) -> bool:
    """Return whether the cluster has GPUs; refuse what Ray would wait for silently."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kind = "GPU" if resources.get("GPU", 0) > 0 else "CPU"
    there = resources.get(kind, 0)
    if workers > there:
        raise ConfigError(
            f"train.workers (={workers}) exceeds the {there:g} {kind}s of the Ray cluster, and a "
            f"worker needs one; lower train.workers or add {kind}s."
        )
    return kind == "GPU"


def _explain(error: "TrainingFailedError") -> None:
    """Raise a worker's own error if the user can act on it."""
    for cause in getattr(error, "worker_failures", {}).values():
        cause = getattr(cause, "cause", cause)
        for kind in (ConfigError, DamageError):
            if isinstance(cause, kind):
                raise kind(str(cause)) from error
        if isinstance(cause, OSError):  # A full disk, as a rule.
            raise cause from error


def transfer_on_ray(config: RunConfig, on_progress: Progress) -> Outcome:
    """Run every job on every trunk as a Ray task, on as many nodes as there are.

    Finished jobs are skipped. Jobs on frozen features wait until those of their trunk are
    extracted; the others start at once. OUT must be a folder that all nodes see.

    Args:
        config: The run.
        on_progress: Called after each part.

    Raises:
        ConfigError: Images or trunks do not allow the transfer, or the cluster is too small.
    """
    opened = open_transfer(config, torch.device("cpu"), on_progress)
    started = ensure_ray()
    try:
        return finish(opened, _run_all(opened, config, on_progress))
    finally:
        if started:
            ray.shutdown()


def _run_all(opened: Opened, config: RunConfig, on_progress: Progress) -> dict[str, Exception]:
    """Run all unfinished parts; return what failed, by name."""
    start = _starter(opened, config)
    waiting = [part for part in opened.pairs if opened.finished(part) is None]
    frozen = [part for part in waiting if opened.is_frozen(part)]
    names = dict.fromkeys(part.trunk for part in frozen)
    running = {start(trunk, None): (f"features of {trunk}", trunk) for trunk in names}
    running |= {start(p.trunk, p.job): (str(p), None) for p in waiting if p not in frozen}
    total, done = len(running) + len(frozen), 0
    failures: dict[str, Exception] = {}
    try:
        while running:
            on_progress(", ".join(name for name, _ in running.values()), done, total)
            (ref,), _ = ray.wait(list(running))
            name, extracted = running.pop(ref)
            error = collect(ref, done).error
            done += 1
            if error is not None:
                logger.error("%s failed: %s", name, error)
                failures[name] = error
                continue
            ready = [part for part in frozen if part.trunk == extracted]
            running |= {start(part.trunk, part.job): (str(part), None) for part in ready}
    finally:
        end_tasks(list(running))  # An error here, or Ctrl-C.
    on_progress("done", total, total)
    return failures


def _starter(opened: Opened, config: RunConfig) -> Callable[[str, str | None], Any]:
    """Return a function (trunk, job) that starts a task; it extracts features if job is None."""
    resources = opened.config.resources
    gpus = _gpus(resources)
    raw = json.dumps(absolute(config).model_dump(mode="json"))
    task: Any = ray.remote(_transfer_task).options(
        num_cpus=resources.num_cpus, num_gpus=gpus, max_retries=resources.retries
    )
    return lambda trunk, job: task.remote(raw, trunk, job)


def _gpus(resources: ResourcesConfig) -> float:
    """Return the GPUs of a task; refuse what Ray would wait for silently."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = resources.num_gpus
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) >= 1 else 0.0
    for key, wanted in (("CPU", resources.num_cpus), ("GPU", gpus)):
        if wanted > there.get(key, 0):
            raise ConfigError(
                f"transfer.resources.num_{key.lower()}s (={wanted:g}) exceeds the "
                f"{there.get(key, 0):g} {key}s of the Ray cluster; lower it or add {key}s."
            )
    return gpus


def _transfer_task(raw: str, trunk: str, job: str | None) -> None:
    opened = open_transfer(parse(RunConfig, json.loads(raw), "config"), here())
    if job is None:
        make_features(opened, trunk, _silent)
    else:
        run_pair(opened, JobOnTrunk(job, trunk), _silent)


def _silent(what: str, done: int, total: int) -> None:
    """Report nothing: the driver counts the parts."""
