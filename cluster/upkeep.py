"""The upkeep of shards as a person runs it: behind a bar, with a clear last line."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from cluster.index_shards import run_somewhere
from cluster.screen import bar
from pipeline.atomic import write_json
from pipeline.config import ConfigError
from pipeline.upkeep.combine import merge, split
from pipeline.upkeep.purge import purge, read_hashes
from pipeline.upkeep.repair import repair
from pipeline.upkeep.verify import Problem, Verified, verify

_SHOWN = 20


def run_verify(manifest: str, console: Console, *, deep: bool, json_file: Path | None) -> Verified:
    """Check shards; names the problems, at most some of them on the screen."""
    with bar(console, "verify", counts=True) as line:
        found = verify(manifest, run_somewhere, deep=deep, on_progress=line.update)
    _show(found.problems, console)
    if json_file:
        write_json(json_file, found.summary())
    asked = "sizes, hashes, indexes and images" if deep else "sizes, hashes and indexes"
    end = f"{len(found.problems)} problems" if found.problems else f"{asked} are as written"
    console.print(
        f"verify: {found.shards} shards, {found.samples} samples: {end}",
        highlight=False,
        soft_wrap=True,
    )
    return found


def run_repair(manifest: str, out: Path, console: Console, *, json_file: Path | None) -> None:
    """Make a new set of what is whole."""
    with bar(console, "repair", counts=True) as line:
        done = repair(manifest, out, run_somewhere, on_progress=line.update)
    _show(done.problems, console)
    ledger = done.manifest.ledger
    if json_file:
        lost = [{"shard": shard, "key": key} for shard, key in done.lost]
        write_json(json_file, {"mended": done.num_mended, "lost": lost, **ledger.model_dump()})
    console.print(
        f"repair: {len(done.manifest.shards)} shards, {done.num_mended} of them mended; "
        f"{done.manifest.num_samples} samples kept, {len(done.lost)} lost"
        f"{f', named in {out}/ledger.jsonl' if done.lost else ''}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(ledger.describe(), highlight=False, soft_wrap=True)


def run_purge(manifest: str, hashes: Path, console: Console, *, json_file: Path | None) -> None:
    """Write tombstones."""
    asked = read_hashes(hashes)
    with bar(console, "purge", counts=True) as line:
        done = purge(manifest, asked, on_progress=line.update)
    if json_file:
        write_json(
            json_file,
            {
                "asked": done.asked,
                "purged": [stone.key for stone in done.new],
                "known": done.known,
                "missing": list(done.missing),
            },
        )
    console.print(
        f"purge: {done.asked} hashes asked for: {len(done.new)} samples purged, {done.known} were "
        f"before, {len(done.missing)} hashes are of no sample here",
        highlight=False,
        soft_wrap=True,
    )


def run_merge(manifests: Sequence[str], out: Path, console: Console) -> None:
    """Make one manifest of several."""
    with bar(console, "merge", counts=True) as line:
        done = merge(manifests, out, on_progress=line.update)
    made = done.manifest
    if done.repeated:
        console.print(
            f"merge: {done.repeated} samples hold an image that another one holds, too; shard the "
            "sources together to keep one of each",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"merge: {len(made.shards)} shards, {made.num_samples} samples in {out}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(made.ledger.describe(), highlight=False, soft_wrap=True)


def run_split(manifest: str, parts: Sequence[str], out: Path, seed: int, console: Console) -> None:
    """Give every shard to a part."""
    shares = _parse_shares(parts)
    with bar(console, "split", counts=True) as line:
        made = split(manifest, out, shares, seed=seed, on_progress=line.update)
    for name, part in made.items():
        console.print(
            f"split: {out / name}: {len(part.shards)} shards, {part.num_samples} samples",
            highlight=False,
            soft_wrap=True,
        )


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


def _show(problems: Sequence[Problem], console: Console) -> None:
    for problem in problems[:_SHOWN]:
        console.print(str(problem), highlight=False, soft_wrap=True)
    if len(problems) > _SHOWN:
        console.print(f"... and {len(problems) - _SHOWN} more; --json FILE names all of them")
