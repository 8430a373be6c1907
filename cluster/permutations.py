"""`tessera permutations`: the answer set of a jigsaw and its distances."""

import time
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.table import Table

from cluster.screen import JsonFile, say
from pipeline.atomic import write_json
from pipeline.config import ConfigError


def permutations(  # noqa: PLR0913 - one for each option
    size: Annotated[int, typer.Option(min=2, max=10_000, help="How many permutations.")],
    tiles: Annotated[int, typer.Option(min=2, max=64, help="Tiles of a puzzle.")] = 9,
    method: Annotated[
        str,
        typer.Option(
            metavar="max_min|max_mean|random",
            help="Largest minimum distance, largest mean distance as in the paper, or random.",
        ),
    ] = "max_min",
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another set.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npy", help="Write the set, and a .json beside it."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot distances and positions as .png or .svg."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Make a jigsaw's permutation set and measure its Hamming distances.

    The same options always give the same set. It is computed, not read from the cache.

    Example: tessera permutations --size 1000 --out perms.npy --plot perms.png
    """
    from pipeline.explain.pictures.permutations import draw_permutations
    from pipeline.pretext.permutation_set import (
        PermutationMethod,
        describe,
        make_permutations,
        write_permutations,
    )

    known = get_args(PermutationMethod)
    if method not in known:
        raise ConfigError(f"method (={method}) must be one of {', '.join(known)}.")
    chosen = cast(PermutationMethod, method)
    started = time.monotonic()
    perms = make_permutations(chosen, tiles, size, seed=seed)
    seconds = time.monotonic() - started
    result = describe(perms) | {"method": method, "seed": seed, "seconds": seconds}
    console = Console()
    console.print(_table(result))
    if out:
        write_permutations(out, perms, method=chosen, seed=seed)
    if plot:
        draw_permutations(plot, perms, f"{size} permutations of {tiles} tiles, {method}")
    if json_file:
        write_json(json_file, result)
    written = [str(path) for path in (out, plot, json_file) if path]
    say(console, _last_line(result, written))


def _table(result: dict[str, Any]) -> Table:
    pairs = sum(result["histogram"])
    table = Table("distance", "pairs", "share")
    for column in table.columns:
        column.justify = "right"
    for distance, count in enumerate(result["histogram"]):
        if count:
            table.add_row(f"{distance}", f"{count:,}", f"{100 * count / pairs:.2f} %")
    return table


def _last_line(result: dict[str, Any], written: list[str]) -> str:
    files = f"; written: {', '.join(written)}" if written else ""
    return (
        f"{result['size']} permutations of {result['tiles']} tiles ({result['method']}, seed "
        f"{result['seed']}): minimum distance {result['min_distance']}, mean "
        f"{result['mean_distance']:.3f}, made in {result['seconds']:.1f} s, sha256 "
        f"{result['sha256'][:12]}{files}"
    )
