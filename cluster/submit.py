"""`tessera submit`: a run as a Ray job; `python -m cluster.submit` is that job."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.jobs import DASHBOARD, address_of, connect, follow, read_config, submit_job
from cluster.pretrain import run_pretrain
from cluster.screen import ConfigFile, Overrides, clear_errors, load_run
from cluster.transfer import require_all, run_transfer
from pipeline.config import parse

if TYPE_CHECKING:
    from training.run import RunConfig


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's dashboard, where Ray takes jobs; default RAY_ADDRESS if it is one, "
            f"else {DASHBOARD}."
        ),
    ] = None,
) -> None:
    """Pretrain, then transfer if the config says so, as a job of a Ray cluster.

    Logs are followed; the exit code is the job's. Paths in the config must mean the same there.

    Example: tessera submit configs/pretrain/jigsaw_r50.yaml --address http://head:8265
    """
    raise typer.Exit(run_as_job(load_run(config, overrides), address_of(address), Console()))


def run_as_job(config: "RunConfig", address: str, console: Console) -> int:
    """Run the config's pretraining, and its transfer if it has one, as a Ray job.

    Our packages travel as the job's working directory, with the resolved config; the cluster's
    Python must have the dependencies.

    Returns:
        The exit code of the job's driver, or 1 if it has none.

    Raises:
        ConfigError: No cluster answers at `address`, it refuses the job, or is lost.
    """
    from training.run import absolute

    client = connect(address)
    job = submit_job(client, address, absolute(config).model_dump_json(), str(config.out))
    console.print(f"job {job} at {address}; stop it with: ray job stop {job} --address {address}")
    try:
        return follow(client, address, job, console)
    except KeyboardInterrupt:
        sys.stderr.write(
            f"tessera: job {job} goes on; stop it with: ray job stop {job} --address {address}\n"
        )
        return 130


def main() -> None:
    """Be the job: run the config that was sent."""
    from training.run import RunConfig

    config = parse(RunConfig, read_config(), "job")
    console = Console()
    run_pretrain(config, console, resume=True, local=False)
    if config.transfer is not None:
        require_all(run_transfer(config, console, local=False))


if __name__ == "__main__":
    with clear_errors():
        main()
