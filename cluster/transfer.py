"""A transfer as Ray tasks: each job on each trunk by itself, and one that fails harms no other."""

import json
import logging
from collections.abc import Callable
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from cluster.session import ensure_ray
from cluster.tasks import end_tasks
from pipeline.config import ConfigError, parse
from training.run import RunConfig, absolute
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

logger = logging.getLogger(__name__)


def transfer_on_ray(config: RunConfig, on_progress: Progress) -> Outcome:
    """Run every job on every trunk as a Ray task, on as many nodes as there are.

    What is finished is skipped. Jobs that look at frozen features wait until those of their trunk
    are extracted; the others start at once. OUT must be a folder that all nodes see.

    Args:
        config: The run.
        on_progress: Told of each part that ends.

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
    """Run all parts that are not finished; returns what failed, by name."""
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
            error = _error_of(ref)
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
    """Return a function (trunk, job) that starts a task; without a job, features are extracted."""
    resources = opened.config.resources
    gpus = _gpus(resources)
    raw = json.dumps(absolute(config).model_dump(mode="json"))
    task: Any = ray.remote(_work).options(
        num_cpus=resources.num_cpus, num_gpus=gpus, max_retries=resources.retries
    )
    return lambda trunk, job: task.remote(raw, trunk, job)


def _gpus(resources: ResourcesConfig) -> float:
    """Return the GPUs of a task; refuse what Ray would wait for without a word."""
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


def _work(raw: str, trunk: str, job: str | None) -> None:
    opened = open_transfer(parse(RunConfig, json.loads(raw), "config"), here())
    if job is None:
        make_features(opened, trunk, _silent)
    else:
        run_pair(opened, JobOnTrunk(job, trunk), _silent)


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody: the driver counts the parts."""


def _error_of(ref: Any) -> Exception | None:
    try:
        ray.get(ref)
    except RayTaskError as error:  # Its own text is a remote traceback.
        cause = error.cause
        return cause if isinstance(cause, Exception) else error
    except RayError as error:
        return error
    return None
