"""`tessera submit`: a run as a Ray job; `python -m cluster.submit` is that job."""

import asyncio
import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.pretrain import run_pretrain
from cluster.screen import ConfigFile, Overrides, clear_errors, load_run
from cluster.transfer import require_all, run_transfer
from pipeline.config import ConfigError, parse

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from training.run import RunConfig

_CONFIG_VARIABLE = "TESSERA_CONFIG"
_CHECKOUT = Path(__file__).parent.parent
# Ray also excludes what .gitignore names, and folders such as .venv.
_EXCLUDES = [".git", "runs", "data", "*.tar", "*.parquet"]
# The Python of the same path as here where the cluster has one, else the one on its PATH.
_ENTRYPOINT = "$(command -v {python} || command -v python) -m cluster.submit"
_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 60


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(help="The cluster's dashboard, where Ray takes jobs.")
    ] = "http://127.0.0.1:8265",
) -> None:
    """Pretrain, then transfer if the config says so, as a job of a Ray cluster.

    Logs are followed; the exit code is the job's. Paths in the config must mean the same there.

    Example: tessera submit configs/pretrain/jigsaw_r50.yaml --address http://head:8265
    """
    raise typer.Exit(run_as_job(load_run(config, overrides), address, Console()))


def run_as_job(config: "RunConfig", address: str, console: Console) -> int:
    """Run the config's pretraining, and its transfer if it has one, as a Ray job.

    The checkout travels as the job's working directory, without data and runs; the cluster's
    Python must have the dependencies.

    Returns:
        The exit code of the job's driver, or 1 if it has none.

    Raises:
        ConfigError: No cluster answers at `address`.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"address (={address}) has no Ray head that takes jobs: {reason} Start one with "
            "`ray start --head`, whose dashboard address is the one to give."
        ) from None
    logging.getLogger("ray").setLevel(logging.ERROR)  # It names every file that it excludes.
    job = _submit(client, config)
    console.print(f"job {job} at {address}; stop it with: ray job stop {job} --address {address}")
    asyncio.run(_print_logs(client, job, console))
    return _exit_code(client, job, console)


def _submit(client: "JobSubmissionClient", config: "RunConfig") -> str:
    """Submit, with patience for a head that has just started and takes no jobs yet."""
    from training.run import absolute

    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return client.submit_job(
                entrypoint=_ENTRYPOINT.format(python=shlex.quote(sys.executable)),
                runtime_env={
                    "working_dir": str(_CHECKOUT),
                    "excludes": _EXCLUDES,
                    "env_vars": {_CONFIG_VARIABLE: absolute(config).model_dump_json()},
                },
                metadata={"out": str(config.out)},
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


async def _print_logs(client: "JobSubmissionClient", job: str, console: Console) -> None:
    async for lines in client.tail_job_logs(job):
        console.out(lines, end="", highlight=False)


def _exit_code(client: "JobSubmissionClient", job: str, console: Console) -> int:
    from ray.job_submission import JobStatus

    # The log stream can end before the job does; only the status is reliable.
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(_POLL_SECONDS)
    info = client.get_job_info(job)
    console.print(f"job {job}: {status.value}")
    if status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or 1


def main() -> None:
    """Be the job: run the config in the environment."""
    from training.run import RunConfig

    config = parse(RunConfig, json.loads(os.environ[_CONFIG_VARIABLE]), "job")
    console = Console()
    run_pretrain(config, console, resume=True, local=False)
    if config.transfer is not None:
        require_all(run_transfer(config, console, local=False))


if __name__ == "__main__":
    with clear_errors():
        main()
