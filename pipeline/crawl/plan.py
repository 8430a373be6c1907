"""Decide which image goes into which shard; pure, and independent of the order of the work."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.config import ConfigError
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.dedupe import pick_winners
from pipeline.crawl.gate import Verdict
from pipeline.crawl.sources import Source
from pipeline.shards.manifest import Ledger

_KEY_DIGITS = 20  # 80 bits: a billion images meet by chance once in two million runs.


@dataclass(frozen=True, slots=True)
class Examined:
    """An input and its verdict."""

    source: Source
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a shard, before it is written."""

    key: str
    """First digits of the content hash."""
    source: Source
    content_hash: str
    image_format: str
    as_is: bool
    """Whether the shard stores the file's own bytes."""
    label: int
    """Class number, -1 where there are no classes."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An input that no shard holds: one line of `ledger.jsonl`."""

    path: str
    verdict: str
    """quarantined, filtered or duplicate."""
    reason: str | None
    winner: str | None
    """Of a duplicate: path of the equal file that is kept."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards, and where every other input went."""

    shards: tuple[tuple[Sample, ...], ...]
    """In order of the content hash, so that each shard is a fair sample of all images."""
    classes: tuple[str, ...] | None
    left_out: tuple[LeftOut, ...]
    """In order of the path."""
    ledger: Ledger


def make_plan(examined: Iterable[Examined], config: ShardConfig) -> Plan:
    """Remove duplicates, order by content and cut into shards.

    Raises:
        ConfigError: No image was accepted; the message counts the reasons.
    """
    inputs = sorted(examined, key=lambda item: item.source.path)
    winners = pick_winners(
        (item.verdict.content_hash, item.source.path)
        for item in inputs
        if item.verdict.outcome == "accepted"
    )
    kept = set(winners.values())
    left_out = tuple(_left_out(item, winners) for item in inputs if item.source.path not in kept)
    ledger = _count(len(inputs), left_out)
    if not kept:
        reasons = {**ledger.quarantined, **ledger.filtered}
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise ConfigError(f"0 usable of {len(inputs)} images: {listed}. Give other sources.")
    accepted = [item for item in inputs if item.source.path in kept]
    classes = _classes(accepted)
    numbers = {name: number for number, name in enumerate(classes or ())}
    samples = sorted((_sample(item, numbers) for item in accepted), key=lambda s: s.content_hash)
    assert len({sample.key for sample in samples}) == len(samples), "two images share a key"
    return Plan(cut_evenly(samples, config.samples_per_shard), classes, left_out, ledger)


def cut_evenly(samples: Sequence[Sample], limit: int) -> tuple[tuple[Sample, ...], ...]:
    """Cut into the fewest runs of at most `limit`; their lengths differ by at most one."""
    num_shards = -(-len(samples) // limit)
    borders = [len(samples) * i // num_shards for i in range(num_shards + 1)]
    return tuple(tuple(samples[a:b]) for a, b in pairwise(borders))


def _classes(accepted: Sequence[Examined]) -> tuple[str, ...] | None:
    names = sorted({item.source.label for item in accepted if item.source.label is not None})
    return tuple(names) if len(names) >= 2 else None


def _sample(item: Examined, numbers: dict[str, int]) -> Sample:
    name, verdict = item.source.label, item.verdict
    return Sample(
        key=verdict.content_hash[:_KEY_DIGITS],
        source=item.source,
        content_hash=verdict.content_hash,
        image_format=verdict.image_format,
        as_is=verdict.as_is,
        label=-1 if name is None else numbers.get(name, -1),
    )


def _left_out(item: Examined, winners: dict[str, str]) -> LeftOut:
    verdict = item.verdict
    if verdict.outcome == "accepted":
        return LeftOut(item.source.path, "duplicate", None, winners[verdict.content_hash])
    return LeftOut(item.source.path, verdict.outcome, verdict.reason, None)


def _count(inputs: int, left_out: Sequence[LeftOut]) -> Ledger:
    reasons = Counter((item.verdict, item.reason) for item in left_out)
    by_verdict: dict[str, dict[str, int]] = {"quarantined": {}, "filtered": {}}
    for (verdict, reason), count in sorted(reasons.items(), key=str):
        if reason is not None:
            by_verdict[verdict][reason] = count
    return Ledger(
        inputs=inputs,
        accepted=inputs - len(left_out),
        duplicate=reasons["duplicate", None],
        **by_verdict,
    )
