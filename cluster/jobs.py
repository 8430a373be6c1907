"""Send a run to a Ray cluster as a job, and be that job."""

import asyncio
import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient
from rich.console import Console

from cluster.errors import clear_errors
from cluster.stages import require_all, run_pretrain, run_transfer
from pipeline.config import ConfigError, parse
from training.run import RunConfig, absolute

_CONFIG_VARIABLE = "TESSERA_CONFIG"
_CHECKOUT = Path(__file__).parent.parent
# Ray also leaves out what .gitignore names, and folders such as .venv.
_EXCLUDES = [".git", "runs", "data", "*.tar", "*.parquet"]
# The Python of the same path as here where the cluster has one, else the one on its PATH.
_ENTRYPOINT = "$(command -v {python} || command -v python) -m cluster.jobs"
_POLL_SECONDS = 1.0
_PATIENCE_SECONDS = 60


def submit(config: RunConfig, address: str, console: Console) -> int:
    """Run the config's pretraining, and its transfer if it has one, as a Ray job.

    The checkout travels as the job's working directory, without data and runs; the cluster's
    Python must have the dependencies. Paths in the config must mean the same on the cluster.

    Returns:
        The exit code of the job's driver, or 1 where it has none.

    Raises:
        ConfigError: No cluster answers at `address`.
    """
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"address (={address}) has no Ray head that takes jobs: {reason} Start one with "
            "`ray start --head`, whose dashboard address is the one to give."
        ) from None
    logging.getLogger("ray").setLevel(logging.ERROR)  # It names every file that it leaves out.
    job = _submit(client, config)
    console.print(f"job {job} at {address}; stop it with: ray job stop {job} --address {address}")
    asyncio.run(_print_logs(client, job, console))
    return _exit_code(client, job, console)


def _submit(client: JobSubmissionClient, config: RunConfig) -> str:
    """Submit, and wait a while for a head that has just started and takes no jobs yet."""
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


async def _print_logs(client: JobSubmissionClient, job: str, console: Console) -> None:
    async for lines in client.tail_job_logs(job):
        console.out(lines, end="", highlight=False)


def _exit_code(client: JobSubmissionClient, job: str, console: Console) -> int:
    # The log stream can end before the job does; only the status tells.
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(_POLL_SECONDS)
    info = client.get_job_info(job)
    console.print(f"job {job}: {status.value}")
    if status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or 1


def main() -> None:
    """Be the job: run what the submitting process put into the environment."""
    config = parse(RunConfig, json.loads(os.environ[_CONFIG_VARIABLE]), "job")
    console = Console()
    run_pretrain(config, console, resume=True, local=False)
    if config.transfer is not None:
        require_all(run_transfer(config, console, local=False))


if __name__ == "__main__":
    with clear_errors():
        main()
