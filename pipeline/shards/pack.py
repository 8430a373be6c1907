"""Labelled images that are trusted already into a folder of shards: all, in the given order."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash
from pydantic import ValidationError

from pipeline.atomic import write_atomic
from pipeline.config import Config, ConfigError
from pipeline.shards import manifest
from pipeline.shards.manifest import Ledger, Manifest, ShardInfo
from pipeline.shards.packed import Packed, Stored, store_image, write_files

LEDGER_NAME = "ledger.jsonl"

_FORMAT_VERSION = 1  # Raise when equal images would give other bytes: old shards are rewritten.
_KEY_DIGITS = 20


class PackReport(Config):
    """Proof that a shard is whole, written last, beside it."""

    plan_id: str
    """Names the images it was made from, and what is said of them."""
    shard: ShardInfo | None
    """None where none of the images can be used."""
    left_out: tuple[tuple[str, str], ...]
    """Source and reason of every image that can not be used."""
    encoded: tuple[tuple[str, str], ...]
    """Source and reason of every image that is stored anew, as PNG."""


def content_key(data: bytes) -> str:
    """Name an image by its content, as the shards of a crawl do: 20 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)[:_KEY_DIGITS]


def pack(
    images: Iterable[Packed],
    out: Path,
    classes: Sequence[str] | None,
    *,
    samples_per_shard: int = 1000,
    about: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write shards, ledger and manifest of images that are a training or test set as given.

    Nothing is filtered or deduplicated, and the order stays. Images that can not be used are
    counted by reason in the manifest; the ledger names them, and those that are stored anew.

    Equal images give equal bytes. Shards that are there already are kept and their images not
    decoded again, so a stopped call goes on.

    Args:
        images: In the order of the shards; those of one shard are held in memory.
        out: Folder, new, empty or packed before.
        classes: Names of the labels.
        samples_per_shard: Images of a shard, those that can not be used included.
        about: What else the manifest's `config` says.

    Raises:
        ConfigError: `out` holds something else, or no image is usable.
    """
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    names = None if classes is None else tuple(classes)
    reports: list[PackReport] = []
    keys: set[str] = set()
    num_inputs = 0
    for number, chunk in enumerate(_chunks(images, samples_per_shard)):
        _check_keys(chunk, keys)
        num_inputs += len(chunk)
        reports.append(_write_shard(chunk, out, f"shard-{number:06d}", names))
    made = Manifest(
        version=2,
        shards=_shards_of(reports, num_inputs),
        classes=names,
        ledger=_count(reports, num_inputs),
        config={"packed": samples_per_shard, **(about or {})},
    )
    _finish_folder(out, made, reports)
    return made


def _check_folder(out: Path) -> None:
    if not out.exists():
        return
    is_foreign = not out.is_dir() or any(not _is_ours(path.name) for path in out.iterdir())
    if not is_foreign and (out / manifest.FILE_NAME).exists():
        is_foreign = "packed" not in manifest.read_manifest(out).config
    if is_foreign:
        raise ConfigError(f"out (={out}) holds more than packed images; choose another folder.")


def _is_ours(name: str) -> bool:
    is_partial = name.startswith(".") and name.endswith(".partial")
    return is_partial or name.startswith("shard-") or name in (LEDGER_NAME, manifest.FILE_NAME)


def _chunks(images: Iterable[Packed], size: int) -> Iterator[list[Packed]]:
    iterator = iter(images)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _check_keys(chunk: Sequence[Packed], earlier: set[str]) -> None:
    for image in chunk:
        if not image.key or "." in image.key.rpartition("/")[2] or image.key in earlier:
            raise ValueError(f"key (={image.key}) must be new, and without a dot.")
        earlier.add(image.key)


def _write_shard(
    images: Sequence[Packed], out: Path, stem: str, classes: tuple[str, ...] | None
) -> PackReport:
    """Write tar, index and report, or return at once when they are there, of equal images."""
    plan_id = _plan_id(images, classes)
    report_path = out / f"{stem}.json"
    done = _finished_report(report_path, plan_id)
    if done is not None:
        return done
    report_path.unlink(missing_ok=True)  # It must never vouch for files it was not made from.
    (out / manifest.FILE_NAME).unlink(missing_ok=True)
    outcomes = [(image.source or image.key, store_image(image)) for image in images]
    stored = [(source, one) for source, one in outcomes if isinstance(one, Stored)]
    kept = [one for _, one in stored]
    report = PackReport(
        plan_id=plan_id,
        shard=write_files(kept, out / f"{stem}.tar", classes) if kept else None,
        left_out=tuple((source, one) for source, one in outcomes if isinstance(one, str)),
        encoded=tuple((source, one.problem) for source, one in stored if one.problem),
    )
    write_atomic(report_path, report.model_dump_json(indent=1).encode())
    return report


def _plan_id(images: Sequence[Packed], classes: tuple[str, ...] | None) -> str:
    rows = []
    for image in images:
        members = [(e, xxhash.xxh3_128_hexdigest(d)) for e, d in sorted(image.members.items())]
        content = xxhash.xxh3_128_hexdigest(image.data)
        rows.append([image.key, content, image.label, image.source, dict(image.about), members])
    text = json.dumps([_FORMAT_VERSION, classes, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished_report(path: Path, plan_id: str) -> PackReport | None:
    """Read the report of a shard that is there, whole and made from an equal plan."""
    try:
        report = PackReport.model_validate_json(path.read_bytes())
        shard = report.shard
        if shard is not None:
            index = hashlib.sha256((path.parent / shard.index).read_bytes()).hexdigest()
            num_bytes = (path.parent / shard.name).stat().st_size
            if (index, num_bytes) != (shard.index_sha256, shard.num_bytes):
                return None
    except (OSError, ValidationError):
        return None
    return report if report.plan_id == plan_id else None


def _shards_of(reports: Sequence[PackReport], num_inputs: int) -> tuple[ShardInfo, ...]:
    shards = tuple(report.shard for report in reports if report.shard is not None)
    if not shards:
        reasons = Counter(reason for report in reports for _, reason in report.left_out)
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise ConfigError(
            f"0 usable of {num_inputs} images{': ' + listed if listed else ''}. Give other images."
        )
    return shards


def _count(reports: Sequence[PackReport], num_inputs: int) -> Ledger:
    reasons = Counter(reason for report in reports for _, reason in report.left_out)
    return Ledger(
        inputs=num_inputs,
        accepted=num_inputs - reasons.total(),
        quarantined=dict(sorted(reasons.items())),
        filtered={},
        duplicate=0,  # Equal images are kept: the set is as it was given.
    )


def _finish_folder(out: Path, made: Manifest, reports: Sequence[PackReport]) -> None:
    """Write the ledger and then the manifest, which completes the folder; remove what is stale."""
    lines = [json.dumps(row) + "\n" for report in reports for row in _ledger_rows(report)]
    write_atomic(out / LEDGER_NAME, "".join(lines).encode())
    manifest.write_manifest(out, made)
    wanted = {f"shard-{number:06d}.json" for number in range(len(reports))}
    wanted |= {name for shard in made.shards for name in (shard.name, shard.index)}
    for path in [*out.glob("shard-*"), *out.glob(".*.partial")]:
        if path.name not in wanted:
            path.unlink()


def _ledger_rows(report: PackReport) -> list[dict[str, str]]:
    verdicts = (("quarantined", report.left_out), ("encoded", report.encoded))
    return [
        {"path": source, "verdict": verdict, "reason": reason}
        for verdict, rows in verdicts
        for source, reason in rows
    ]
