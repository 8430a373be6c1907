"""`tessera bench ...`: this machine measured, the loader and the shard stage beside peers."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.screen import JsonFile, bar
from pipeline.atomic import write_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure this machine: the loader beside its peers and its limits.",
)


@app.command("loader")
def bench_loader(
    data: Annotated[
        Path, typer.Option(help="Folder tree of images, or of shards; 64 images or more.")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="The strongest peers only, under a minute.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="One measure: tiles, whole, python_overhead, growth, first_batch, restore, cuda.",
        ),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of every contender; default all."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="cpu|cuda", help="cuda adds measures on the first GPU.")
    ] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Measure the loader against its peers, decode only and read only, in one run.

    Every contender does the same work on the same photographs in processes of its own, in turn,
    round by round, while the others are stopped. Peers that are not installed are named; the extra
    `bench` brings them. The full run takes about 20 minutes.

    Example: tessera bench loader --data pictures/ --quick
    """
    from pipeline.bench.loader import bench_loader as run_bench
    from pipeline.bench.loader import make_options

    options = make_options(data, quick=quick, only=only, cores=cores, device=device)
    _measure(partial(run_bench, options), json_file)


@app.command("shard")
def bench_shard(
    data: Annotated[
        Path, typer.Option(help="Folder tree of images, or of shards; two images or more.")
    ],
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Few images, the strongest peers, no growth: under a minute."),
    ] = False,
    growth: Annotated[
        int | None,
        typer.Option(help="Most images of the growth measure; default 100000."),
    ] = None,
    plan: Annotated[
        int | None,
        typer.Option(help="Most synthetic inputs whose shards are planned; default none."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure the shard stage against peers and the strict decode alone, in one run.

    Every contender makes shards of the same photographs on one core, in a process of its own, in
    turn, round by round. Its output is decoded once and counted before it is measured.
    img2dataset takes part if it is installed; else the OpenCV calls of its resizer, which the extra
    `bench` brings, stand in for it. The full run takes about 15 minutes.

    Example: tessera bench shard --data pictures/ --quick
    """
    from pipeline.bench.shard import bench_shard as run_bench
    from pipeline.bench.shard import make_options

    _measure(
        partial(run_bench, make_options(data, quick=quick, growth=growth, plan=plan)), json_file
    )


@app.command("transfer")
def bench_transfer(
    data: Annotated[
        Path, typer.Option(help="Tree with a folder of images for each class, or labelled shards.")
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Few images of ten classes.")] = False,
    trunk: Annotated[
        str, typer.Option(metavar="resnet18|small", help="With random weights.")
    ] = "resnet18",
    json_file: JsonFile = None,
) -> None:
    """Measure a transfer against a torchvision loop and scikit-learn, in one run.

    Features are extracted by the loader and the forward pass, by each alone, and by a plain
    torchvision loop, in processes of their own, in turn. Then the SVMs of all layers are compared
    with scikit-learn alone, and the linear probe of all layers with that of the last one. The full
    run trains on up to 20 images of every class; with a hundred classes it takes 20 minutes, most
    of them scikit-learn's, which gets 5 and a last layer.

    Example: tessera bench transfer --data labelled/ --quick
    """
    from training.bench.transfer import bench_transfer as run_bench
    from training.bench.transfer import make_options

    _measure(partial(run_bench, make_options(data, quick=quick, trunk=trunk)), json_file)


@app.command("walk")
def bench_walk(json_file: JsonFile = None) -> None:
    """Measure how fast tar headers are walked and third-party shards are indexed.

    Example: tessera bench walk
    """
    from pipeline.bench.shard_measures import measure_walk

    with tempfile.TemporaryDirectory() as folder:
        result = measure_walk(Path(folder))
    _show("40,000 members a tar, per CPU-second", result)
    if json_file:
        write_json(json_file, result)


@app.command("faults")
def bench_faults(json_file: JsonFile = None) -> None:
    """Measure what a flaky store costs: 1 % of requests fail, 5 % take ten times as long.

    Takes about two minutes.

    Example: tessera bench faults
    """
    from pipeline.bench.faults import measure_faults

    result = measure_faults()
    _show("Files of 2 MiB from a server on this machine", result)
    if json_file:
        write_json(json_file, result)


@app.command("soak")
def bench_soak(
    data: Annotated[Path, typer.Option(help="Folder of shards.")],
    epochs: Annotated[int, typer.Option(min=2, help="Passes over all samples.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Read shards for epochs in several processes, kill them midway, continue with more.

    Ends with exit code 1 unless every sample came exactly once in every epoch.

    Example: tessera bench soak --data shards/ --epochs 10
    """
    from pipeline.bench.soak import soak

    console = Console()
    with (
        tempfile.TemporaryDirectory() as scratch,
        bar(console, "soak", counts=True) as line,
    ):
        result = soak(
            data,
            Path(scratch) / "ledgers",
            epochs=epochs,
            on_progress=lambda done, total: line.update(done, total),
        )
    for name, value in result.items():
        console.print(f"{name}: {value}", highlight=False)
    if json_file:
        write_json(json_file, result)
    if result["lost"] or result["repeated"] or result["misplaced"]:
        raise typer.Exit(1)


def _measure(run: Callable[[Any, Any], dict[str, Any]], json_file: Path | None) -> None:
    """Run a bench (on_progress, show) below a bar, and write its result."""
    console = Console()
    with bar(console, "bench", counts=False) as line:
        result = run(line.update, console.print)
    if json_file:
        write_json(json_file, result)


def _show(title: str, result: dict[str, Any]) -> None:
    """Print the mappings of a result as the columns of a table."""
    columns = {name: value for name, value in result.items() if isinstance(value, dict)}
    table = Table(title=title)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in next(iter(columns.values())):
        table.add_row(row, *(f"{column.get(row, 0):,.4g}" for column in columns.values()))
    Console().print(table)
