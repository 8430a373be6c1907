"""The `tessera` command."""

# Commands import what they run: `tessera --help` and the processes that render or shard must not
# wait for torch, DALI and Ray.

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

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
    "  [bold]pretrain[/]  shards in, a trunk out: jigsaw puzzles on any number of processes\n\n"
    "  [bold]transfer[/]  the trunk beside a random one: linear SVMs on frozen features\n\n"
    "  [bold]report[/]    one HTML page of a run\n\n"
    "[bold]tessera demo[/] runs them all here; [bold]tessera submit[/] sends them to a cluster; "
    "[bold]tessera explain[/] shows what any step saw.",
)

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure this machine: the loader beside its peers and its limits."
)
app.add_typer(bench_app, name="bench")

_VERSIONS = ("torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "ray")

Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads the annotation at run time on Python 3.10
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...", help="Replace keys of the config: train.max_minutes=5"
    ),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file; see configs/.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on in a folder that is not empty.")]
JsonFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--json", metavar="FILE", help="Write the result as JSON, too."),
]


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


@app.command()
def shard(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC...",
            help="Folders of images, searched through all levels. Where the last level gives two "
            "or more names, they are kept as labels for the transfer.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the shards.")],
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="YAML with limits and filters; configs/demo/shard.yaml lists them."),
    ] = None,
    resume: Resume = False,
    json_file: JsonFile = None,
) -> None:
    """Make WebDataset shards, with an index and a hash for every image.

    Every file is accepted, quarantined (no whole image), filtered (by a rule) or a duplicate; the
    last line says how many of each, and OUT/ledger.jsonl names every one that was left out.

    Example: tessera shard crawl/ --out shards/
    """
    with clear_errors():
        import time

        from cluster.stages import run_shard, shard_json
        from pipeline.config import load
        from pipeline.crawl.config import ShardConfig
        from training.run import write_json

        started = time.monotonic()
        settings = load(ShardConfig, config) if config else ShardConfig()
        manifest = run_shard(sources, out, settings, Console(), resume=resume)
        if json_file:
            write_json(json_file, shard_json(manifest.ledger, time.monotonic() - started))


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
        import json

        from cluster.index_shards import run_index
        from pipeline.shards.manifest import write_atomic

        indexed = run_index(inputs, out, Console(), fast=fast, skip_damaged=skip_damaged)
        if json_file:
            write_atomic(json_file, (json.dumps(indexed.summary(), indent=1) + "\n").encode())


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
    json_file: JsonFile = None,
) -> None:
    """Score a run's trunk on labelled shards, beside a random trunk of the same architecture.

    Linear SVMs on the frozen features of every stage; results go to OUT/transfer.json.

    Example: tessera transfer configs/demo/transfer.yaml
    """
    with clear_errors():
        from cluster.demo import transfer_table
        from cluster.stages import run_transfer
        from pipeline.config import load
        from training.run import RunConfig, write_json

        console = Console()
        result = run_transfer(load(RunConfig, config, overrides or []), console)
        console.print(transfer_table(result))
        if json_file:
            write_json(json_file, result)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
) -> None:
    """Write RUN/report.html: one page, with everything in it.

    Example: tessera report runs/demo
    """
    with clear_errors():
        from cluster.stages import run_report

        run_report(run, Console())


@app.command()
def explain(  # noqa: PLR0913 - one for each option
    manifest: Annotated[
        str,
        typer.Argument(
            metavar="MANIFEST",
            help="The folder of a run; or a folder of shards, the manifest in it, or its URL, with "
            "--config.",
        ),
    ],
    epoch: Annotated[int, typer.Option(min=0, help="Counts from 0.")],
    overrides: Overrides = None,
    step: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Show all samples of this step of the epoch; counts from 0."),
    ] = None,
    sample: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="KEY_OR_ID",
            help="Show where one sample comes in the epoch instead; key:123 is a key, 123 an id.",
        ),
    ] = None,
    rank: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="r/R", help="Show only what rank r of R ranks reads of the step."),
    ] = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="CONFIG", help="A run's YAML, which names order, seed and pretext."),
    ] = None,
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR", help="Draw every sample with its views into a new folder; see step.png."
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """List what a step showed: samples, the bytes they come from, and every random draw.

    The loader itself makes the step again, so it is what the network saw, on any number of ranks.

    Example: tessera explain runs/demo --epoch 0 --step 12 --save step12/
    """
    with clear_errors():
        from cluster.explain import WIDTH, Answers, Question, run_explain, run_of

        console = Console()
        if not console.is_terminal:
            console = Console(width=WIDTH)
        run = run_of(manifest, config, overrides or [])
        question = Question(epoch, step, sample, rank)
        run_explain(run, question, Answers(save, json_file), console)


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


@bench_app.command("loader")
def bench_loader(
    data: Annotated[
        Path, typer.Option(help="Folder tree of images, or of shards; 64 images or more.")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="The strongest peers only, under a minute.")
    ] = False,
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAME",
            help="One measure: tiles, whole, python_overhead, growth, first_batch, restore, cuda.",
        ),
    ] = None,
    cores: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Cores of every contender; all of the machine, if not given."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="cpu|cuda", help="cuda adds measures on the first GPU.")
    ] = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Measure the loader against its peers, decode only and read only, in one run.

    Every contender does the same work on the same photographs in processes of its own, in turn,
    round by round, while the others are stopped. Peers that are not installed are named:
    the extra `bench` brings them. The full run takes about 20 minutes.

    Example: tessera bench loader --data pictures/ --quick
    """
    with clear_errors():
        from cluster.screen import bar
        from pipeline.bench.loader import bench_loader as run_bench
        from pipeline.bench.loader import make_options
        from training.run import write_json

        options = make_options(data, quick=quick, only=only, cores=cores, device=device)
        console = Console()
        with bar(console, "bench", counts=False) as line:
            result = run_bench(options, line.update, console.print)
        if json_file:
            write_json(json_file, result)


def main() -> None:
    """Be the `tessera` command."""
    app()


if __name__ == "__main__":
    main()
