"""`tessera verify`, `repair`, `purge`, `merge` and `split`: the upkeep of finished shards."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.screen import JsonFile, Manifest, bar, say
from cluster.tasks import run_somewhere
from pipeline.atomic import write_json
from pipeline.config import ConfigError

if TYPE_CHECKING:
    from pipeline.upkeep.verify import Problem

_SHOWN = 20


def verify(
    manifest: Manifest,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also decode every image, as strictly as the gate does.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Check every byte of finished shards against manifest and indexes.

    Every problem is named with shard, key and byte; the exit code is 1 if there is one.

    Example: tessera verify shards/ --deep
    """
    from pipeline.upkeep.verify import verify as verify_shards

    console = Console()
    with bar(console, "verify", counts=True) as line:
        found = verify_shards(manifest, run_somewhere, deep=deep, on_progress=line.update)
    _show(found.problems, console)
    if json_file:
        write_json(json_file, found.summary())
    checked = "sizes, hashes, indexes and images" if deep else "sizes, hashes and indexes"
    end = f"{len(found.problems)} problems" if found.problems else f"{checked} are as written"
    say(console, f"verify: {found.shards} shards, {found.samples} samples: {end}")
    raise typer.Exit(0 if found.ok else 1)


def repair(
    manifest: Manifest,
    out: Annotated[Path, typer.Option(help="New folder for the repaired set.")],
    json_file: JsonFile = None,
) -> None:
    """Make a new set of every intact sample, and list the others.

    Intact shards are linked, damaged ones rewritten without the lost samples. The old set stays
    unchanged.

    Example: tessera repair shards/ --out mended/
    """
    from pipeline.upkeep.repair import repair as repair_shards

    console = Console()
    with bar(console, "repair", counts=True) as line:
        done = repair_shards(manifest, out, run_somewhere, on_progress=line.update)
    _show(done.problems, console)
    ledger = done.manifest.ledger
    if json_file:
        lost = [{"shard": shard, "key": key} for shard, key in done.lost]
        write_json(json_file, {"mended": done.num_mended, "lost": lost, **ledger.model_dump()})
    named = f", named in {out}/ledger.jsonl" if done.lost else ""
    say(
        console,
        f"repair: {len(done.manifest.shards)} shards, {done.num_mended} of them mended; "
        f"{done.manifest.num_samples} samples kept, {len(done.lost)} lost{named}",
    )
    say(console, ledger.describe())


def purge(
    manifest: Manifest,
    hashes: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="One hash per line: of an original file (xxh128sum FILE), the key of a sample, "
            "or of a stored image (xxh3, 64 bit).",
        ),
    ],
    json_file: JsonFile = None,
) -> None:
    """Exclude samples from training for good: opt-outs and takedowns.

    Writes tombstones.jsonl beside the manifest, which every run obeys from its next epoch on;
    OUT/quarantine.jsonl of a run names each replacement. To remove the bytes, too, shard again
    without the sources.

    Example: tessera purge shards/ --hashes removed.txt
    """
    from pipeline.upkeep.purge import purge as purge_samples
    from pipeline.upkeep.purge import read_hashes

    console, asked = Console(), read_hashes(hashes)
    with bar(console, "purge", counts=True) as line:
        done = purge_samples(manifest, asked, on_progress=line.update)
    if json_file:
        result = {
            "asked": done.asked,
            "purged": [stone.key for stone in done.new],
            "known": done.known,
            "missing": list(done.missing),
        }
        write_json(json_file, result)
    say(
        console,
        f"purge: {done.asked} hashes asked for: {len(done.new)} samples purged, {done.known} were "
        f"before, {len(done.missing)} hashes match no sample here",
    )


def merge(
    manifests: Annotated[
        list[str],
        typer.Argument(metavar="MANIFEST...", help="Folders of shards, manifests, or their URLs."),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the manifest.")],
) -> None:
    """Make one manifest of several; the shards stay in place.

    To read sets in fixed shares instead, name them under data.mixture in a run's config.

    Example: tessera merge crawl-1/ crawl-2/ --out all/
    """
    from pipeline.upkeep.combine import merge as merge_manifests

    console = Console()
    with bar(console, "merge", counts=True) as line:
        done = merge_manifests(manifests, out, on_progress=line.update)
    made = done.manifest
    if done.repeated:
        say(
            console,
            f"merge: {done.repeated} samples hold an image that another one holds, too; shard the "
            "sources together to keep one of each",
        )
    say(console, f"merge: {len(made.shards)} shards, {made.num_samples} samples in {out}")
    say(console, made.ledger.describe())


def split(
    manifest: Manifest,
    parts: Annotated[
        list[str], typer.Argument(metavar="NAME=SHARE...", help="As train=0.9 val=0.1.")
    ],
    out: Annotated[Path, typer.Option(help="New folder, with a folder for each part.")],
    seed: Annotated[int, typer.Option(help="Another seed gives other parts.")] = 0,
) -> None:
    """Assign every shard to one of several parts, in place.

    Shards are fair samples of all images, and so are the parts; shares are met to within a shard.

    Example: tessera split shards/ train=0.9 val=0.1 --out parts/
    """
    from pipeline.upkeep.combine import split as split_shards

    console, shares = Console(), _parse_shares(parts)
    with bar(console, "split", counts=True) as line:
        made = split_shards(manifest, out, shares, seed=seed, on_progress=line.update)
    for name, part in made.items():
        shards, samples = len(part.shards), part.num_samples
        say(console, f"split: {out / name}: {shards} shards, {samples} samples")


def _parse_shares(parts: Sequence[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    for text in parts:
        name, _, share = text.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not re.fullmatch(r"[\w.-]+", name) or name in shares or not 0 < value < 1:
            raise ConfigError(
                f"part (={text}) must be a name, given once, and a share between 0 and 1, as "
                "train=0.9."
            )
        shares[name] = value
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ConfigError(
            f"shares (={' + '.join(f'{v:g}' for v in shares.values())} = "
            f"{sum(shares.values()):g}) must sum to 1; change one of them."
        )
    return shares


def _show(problems: Sequence["Problem"], console: Console) -> None:
    for problem in problems[:_SHOWN]:
        say(console, str(problem))
    if len(problems) > _SHOWN:
        say(console, f"... and {len(problems) - _SHOWN} more; --json FILE names all of them")
