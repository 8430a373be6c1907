"""The `tessera` command: a table of commands, each imported only when it is called."""

import platform
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

_HELP = """Turn a heap of crawled, unlabeled images into a pretrained vision trunk and score it.

The stages, each a command:

  [bold]shard[/]     images in, WebDataset shards out; every input accounted for

  [bold]index[/]     third-party WebDataset shards, used in place

  [bold]pretrain[/]  shards in, a trunk out: jigsaw, context, rotation, or all at once

  [bold]transfer[/]  what the trunk is worth: SVMs, probes and more, beside a random trunk

  [bold]report[/]    one HTML page of a run

[bold]tessera demo[/] runs them all here; [bold]tessera submit[/] sends them to a cluster; \
[bold]tessera explain[/] shows what any step saw, [bold]tessera preview[/] what a config would show.
"""
_VERSIONS = ("tessera", "torch", "torchvision", "nvidia-dali-cuda130", "webdataset", "ray")


class Entry(NamedTuple):
    """Where a command is, and the first line of its docstring: `--help` imports no command."""

    module: str
    line: str


COMMANDS = {
    "shard": Entry("shard", "Make WebDataset shards, with an index and a hash for every image."),
    "index": Entry("index", "Make third-party WebDataset shards readable in place."),
    "pretrain": Entry("pretrain", "Train a trunk on a pretext task; `out` is the run's folder."),
    "transfer": Entry(
        "transfer",
        "Score a run's trunk on labelled images, beside a random and a supervised trunk.",
    ),
    "report": Entry("report", "Write one self-contained page of a run, or of several compared."),
    "submit": Entry(
        "submit", "Pretrain, then transfer if the config says so, as a job of a Ray cluster."
    ),
    "demo": Entry(
        "demo", "Run the whole chain on this machine: crawl, shards, trunk, score, report."
    ),
    "audit": Entry(
        "audit", "Test whether low-level statistics alone solve the pretext, without the picture."
    ),
    "explain": Entry(
        "explain", "List what a step showed: samples, where their bytes lie, every random draw."
    ),
    "permutations": Entry(
        "permutations", "Make a jigsaw's permutation set and measure its Hamming distances."
    ),
    "preview": Entry(
        "preview", "Draw what the network sees of some images, and what each countermeasure does."
    ),
    "inspect": Entry(
        "inspect", "Show what a set of shards holds: counts, histograms and contact sheets."
    ),
    "verify": Entry("upkeep", "Check every byte of finished shards against manifest and indexes."),
    "repair": Entry("upkeep", "Make a new set of every intact sample, and list the others."),
    "purge": Entry("upkeep", "Exclude samples from training for good: opt-outs and takedowns."),
    "merge": Entry("upkeep", "Make one manifest of several; the shards stay in place."),
    "split": Entry("upkeep", "Assign every shard to one of several parts, in place."),
    "config": Entry("config", "List every key of the configs: type, default, limits, meaning."),
    "bench": Entry("bench", "Measure this machine: the loader beside its peers and its limits."),
    "data": Entry("data", "Get labelled images for the transfer."),
}


def load_command(name: str) -> Any:
    """Import a command: the group `app` of its module, else the function of its name."""
    module = import_module(f"cluster.{COMMANDS[name].module}")
    group = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(add_completion=False)
        group.command(name)(getattr(module, name))
    return typer.main.get_command(group)


class _Lazy(TyperCommand):
    """Stands for a command in `--help`; the command itself reads its arguments."""

    def make_context(self, info_name: str | None, *arguments: Any, **options: Any) -> Any:
        assert self.name is not None
        return load_command(self.name).make_context(info_name, *arguments, **options)


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        from cluster.screen import clear_errors

        with clear_errors():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help=_HELP,
)


def _print_versions(wanted: bool) -> None:
    if wanted:
        for name in _VERSIONS:
            typer.echo(f"{name} {version(name)}")
        typer.echo(f"python {platform.python_version()}")
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


for _name, _entry in COMMANDS.items():
    app.command(_name, cls=_Lazy, help=_entry.line)(lambda: None)


def main() -> None:
    """Run the `tessera` command."""
    app()


if __name__ == "__main__":
    main()
