"""Run `train()` under Ray Train, and follow it."""

import signal
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.config import ConfigError, parse
from pipeline.loading.piped import STDIN
from pipeline.shards.damage import DamageError
from training.metrics import OnRecord, following
from training.pretrain import check, train
from training.run import RunConfig, absolute, pretraining_of

_COLLECTIVE_TIMEOUT_SECONDS = 300  # The default of 1800 makes a lost rank look like slow training.


def pretrain_on_ray(config: RunConfig, on_record: OnRecord) -> None:
    """Pretrain with `train.workers` processes of the Ray that is connected.

    The run goes on from its newest checkpoint, after a failure too (`train.max_failures`).

    Raises:
        ConfigError: The config, the data or the cluster's resources do not allow the run.
        DamageError: A worker met damaged data.
    """
    run = pretraining_of(config)
    check(run)
    if run.data.stream and STDIN in run.data.stream.urls:
        raise ConfigError(
            f"data.stream.url (={STDIN}) is standard input, which Ray's workers do not have; add "
            "--local, or name files or a pipe:."
        )
    use_gpu = _require_resources(run.train.workers)
    trainer = TorchTrainer(
        _work,
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
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with following(config.out, on_record):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        _explain(error)
        raise
    except SystemExit:  # Ray's own handler of Ctrl-C aborts the run, then exits.
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, on_interrupt)  # Ray leaves its own behind.


def _work(raw: dict[str, Any]) -> None:
    train(pretraining_of(parse(RunConfig, raw, "config")))


def _require_resources(workers: int) -> bool:
    """Return whether the cluster has GPUs; refuse what Ray would wait for without a word."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    kind = "GPU" if resources.get("GPU", 0) > 0 else "CPU"
    there = resources.get(kind, 0)
    if workers > there:
        raise ConfigError(
            f"train.workers (={workers}) exceeds the {there:g} {kind}s of the Ray cluster, and a "
            f"worker needs one; lower train.workers or add {kind}s."
        )
    return kind == "GPU"


def _explain(error: ray.train.TrainingFailedError) -> None:
    """Raise a worker's own error where it is one that a person can act on."""
    for cause in getattr(error, "worker_failures", {}).values():
        cause = getattr(cause, "cause", cause)
        for kind in (ConfigError, DamageError):
            if isinstance(cause, kind):
                raise kind(str(cause)) from error
