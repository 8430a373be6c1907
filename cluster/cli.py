"""The `tessera` command."""

# Commands import what they run: `tessera --help` and the processes that render or shard must not
# wait for torch, DALI and Ray.

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from cluster import (
    cli_audit,
    cli_bench,
    cli_data,
    cli_explain,
    cli_permutations,
    cli_preview,
    cli_shard,
    cli_upkeep,
)
from cluster.cli_options import ConfigFile, JsonFile, Overrides, Resume
from cluster.errors import clear_errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn a heap of crawled, unlabeled images into a pretrained vision trunk, and say what "
    "the trunk is worth.\n\n"
    "The stages, each a command:\n\n"
    "  [bold]shard[/]     images in, WebDataset shards out; every input accounted for\n\n"
    "  [bold]index[/]     WebDataset shards of others, used where they lie\n\n"
    "  [bold]pretrain[/]  shards in, a trunk out: jigsaw, context, rotation, or all at once\n\n"
    "  [bold]transfer[/]  what the trunk is worth: SVMs, probes and more, beside a random one\n\n"
    "  [bold]report[/]    one HTML page of a run\n\n"
    "[bold]tessera demo[/] runs them all here; [bold]tessera submit[/] sends them to a cluster; "
    "[bold]tessera explain[/] shows what any step saw, [bold]tessera preview[/] what a config "
    "would show.",
)

_VERSIONS = ("torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "ray")


def _print_versions(wanted: bool) -> None:
    if wanted:
        console = Console()
        names = ("tessera", *_VERSIONS)
        for name in names:
            console.print(f"{name} {version(name)}", highlight=False)
        console.print(f"python {platform.python_version()}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Print the versions of Tessera and of what results depend on.",
        ),
    ] = False,
) -> None:
    pass


app.command()(cli_shard.shard)


@app.command()
def index(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="SHARD...",
            help="Tars, globs, brace patterns ({000000..000009}) and folders, as paths or URLs; "
            "quote the patterns.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the manifest and the indexes.")],
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="Read the headers of the tars only; images are looked at when training first "
            "reads them.",
        ),
    ] = False,
    skip_damaged: Annotated[
        bool,
        typer.Option("--skip-damaged", help="Leave damaged shards out instead of refusing all."),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Make WebDataset shards of others readable where they lie, without rewriting them.

    Damaged shards are named and refused. A sample that cannot be used is quarantined with its
    reason in OUT/ledger.jsonl. Called again, it scans only what is new or changed.

    Example: tessera index 'laion/{00000..00099}.tar' --out indexes/laion
    """
    with clear_errors():
        from cluster.index_shards import run_index
        from pipeline.atomic import write_json

        indexed = run_index(inputs, out, Console(), fast=fast, skip_damaged=skip_damaged)
        if json_file:
            write_json(json_file, indexed.summary())


@app.command()
def pretrain(
    config: ConfigFile,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="One plain process, without Ray (torchrun works, too).")
    ] = False,
    resume: Resume = False,
) -> None:
    """Train a trunk on a pretext task; the run's folder is `out` in the config.

    Stopped in any way, the same command with --resume goes on from the newest checkpoint, with the
    same samples in the same order, on any number of workers.

    Example: tessera pretrain configs/demo/pretrain.yaml train.max_minutes=1
    """
    with clear_errors():
        from cluster.stages import run_pretrain
        from pipeline.config import load
        from training.run import RunConfig

        run = load(RunConfig, config, overrides or [])
        run_pretrain(run, Console(), resume=resume, local=local)


@app.command()
def transfer(
    config: ConfigFile,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="One plain process, job after job, without Ray.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Score a run's trunk on labelled images, beside a random and a supervised trunk.

    Every job of the config on every trunk: SVMs, few labels, neighbours, probes, fine-tuning,
    detection. Results go to OUT/transfer/JOB.json and OUT/results.csv. Stopped in any way, the same
    command runs only what is missing.

    Example: tessera transfer configs/demo/transfer.yaml
    """
    with clear_errors():
        from cluster.stages import require_all, run_transfer
        from cluster.transfer_table import layer_table, transfer_table
        from pipeline.atomic import write_json
        from pipeline.config import load
        from training.run import RunConfig

        console = Console()
        found = run_transfer(load(RunConfig, config, overrides or []), console, local=local)
        if found.summary:
            console.print(layer_table(found.summary))
        console.print(transfer_table(found.entries))
        if json_file:
            write_json(json_file, found.entries)
        require_all(found)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="The page; RUN/report.html without it."),
    ] = None,
) -> None:
    """Write one page of a run, or of several side by side, with everything in it.

    Example: tessera report runs/jigsaw runs/rotation --out runs/both.html
    """
    with clear_errors():
        from cluster.stages import run_report

        run_report(runs, Console(), out=out)


@app.command()
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
    with clear_errors():
        from cluster.jobs import submit as submit_job
        from pipeline.config import load
        from training.run import RunConfig

        run = load(RunConfig, config, overrides or [])
        raise typer.Exit(submit_job(run, address, Console()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="New folder for everything.")] = Path("runs/demo"),
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder tree of your own images; without it, a crawl is rendered."),
    ] = None,
    minutes: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Bound of the pretraining.", min=0.01),
    ] = None,
    resume: Resume = False,
) -> None:
    """Run the whole chain on this machine: crawl, shards, trunk, score, report.

    Example: tessera demo --images ~/pictures --out runs/pictures
    """
    with clear_errors():
        from cluster.demo import demo as run_demo

        run_demo(out, images, minutes, Console(), resume=resume)


app.command()(cli_audit.audit)
app.command()(cli_explain.explain)
app.command()(cli_permutations.permutations)
app.command()(cli_preview.preview)
app.command()(cli_upkeep.inspect)
app.command()(cli_upkeep.verify)
app.command()(cli_upkeep.repair)
app.command()(cli_upkeep.purge)
app.command()(cli_upkeep.merge)
app.command()(cli_upkeep.split)
app.add_typer(cli_bench.app, name="bench")
app.add_typer(cli_data.app, name="data")


def main() -> None:
    """Be the `tessera` command."""
    app()


if __name__ == "__main__":
    main()
