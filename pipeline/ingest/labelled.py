"""Pack a curated, labelled set of images into shards: all of them, in order."""

import hashlib
import io
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image

from pipeline.config import ConfigError
from pipeline.dali.decode import decode_rgb
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.decoded import RefusedError
from pipeline.ingest.gate.judge import decode
from pipeline.shards import manifest
from pipeline.shards.headers import MAX_PIXELS, HeaderError, read_size
from pipeline.shards.manifest import LEDGER_NAME, Manifest, finish_folder, ledger_line
from pipeline.shards.writer import (
    KEY_DIGITS,
    NewSample,
    ShardReport,
    count_inputs,
    read_report,
    write_report,
    write_shard,
)

FORMAT_VERSION = 2
"""Raise when equal images would give other bytes: old shards are rewritten."""
_ORIENTATION_TAG = 0x0112
_NO_SHARD = {"index": "", "num_samples": 0, "num_bytes": 0, "sha256": None, "index_sha256": ""}
_WHOLE = ShardConfig(max_side=16_000, max_aspect=4.0, max_pixels=MAX_PIXELS)
"""Reduces nothing: an image with a longer side exceeds max_pixels."""


_EXIF_MARKS = (b"Exif\0\0", b"eXIf", b"EXIF", b"Raw profile type exif")
"""Of JPEG, PNG, WebP and old PNG: without one there is no EXIF, and nothing is parsed."""
_TURNED = range(2, 9)
ORIENTATION = "orientation"
"""Why an image is stored anew: EXIF says that it is to be shown turned or mirrored."""


def orientation_of(data: bytes) -> int:
    """Read the EXIF orientation, 1 to 8, of a JPEG, PNG or WebP; 1 where it has none that is sound.

    The gate's decoder decides by the same tag, so that packed and sharded images are turned alike.
    """
    if not any(mark in data for mark in _EXIF_MARKS):
        return 1
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG", "PNG", "WEBP"]) as image:
            found = image.getexif().get(_ORIENTATION_TAG, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1
    return int(found) if isinstance(found, int) and found in _TURNED else 1


def upright_png(data: bytes) -> bytes | None:
    """Encode an image as PNG with its EXIF orientation applied; None where it does not decode."""
    stored = _encode(Packed("", data), ORIENTATION)
    return stored.data if isinstance(stored, Stored) else None


@dataclass(frozen=True, slots=True)
class Packed:
    """One image to pack."""

    key: str
    """Its unique name in the shards, without a dot."""
    data: bytes
    """The original file."""
    label: int = -1
    """Class number, -1 for none or several."""
    source: str = ""
    """Where it came from, for the ledger and the sample's .json; valid Unicode."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the sample's .json."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Further files of the sample, by ending: xml."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An image as stored in a shard."""

    image: Packed
    data: bytes
    ending: str
    width: int
    """px."""
    height: int
    """px."""
    problem: str = ""
    """Why `data` is not the original file; empty if it is."""


def store_image(image: Packed) -> Stored | str:
    """Return what a shard stores of an image, or the reason why it is excluded.

    Upright JPEG, PNG and WebP are stored unchanged. What EXIF turns or mirrors, and what only
    Pillow decodes, not the training decoder, is stored as RGB PNG: upright, alpha on white.
    """
    data = image.data
    try:
        width, height = read_size(memoryview(data))
    except HeaderError as error:
        # Another format than JPEG, PNG or WebP. No decoder fixes other faults.
        return _encode(image, "format") if error.reason == "header" else error.reason
    if orientation_of(data) != 1:
        turned = _encode(image, ORIENTATION)
        if isinstance(turned, Stored):
            return turned
    pixels = decode_rgb(data)
    # This decoder applies EXIF orientation; the loader does not.
    if pixels is None or sorted(pixels.shape[:2]) != sorted((height, width)):
        return _encode(image, "decoder_refuses")
    ending = "jpg" if data[:2] == b"\xff\xd8" else "png" if data[1:4] == b"PNG" else "webp"
    return Stored(image, data, ending, width, height)


def _encode(image: Packed, problem: str) -> Stored | str:
    """Decode strictly, as the gate does, and store losslessly."""
    try:
        decoded = decode(image.data, _WHOLE)
        pixels = decoded.in_colour()
    except RefusedError as error:
        return error.reason
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    sink = io.BytesIO()
    shown.save(sink, "PNG")
    problem = ORIENTATION if "oriented" in decoded.notes else problem
    return Stored(image, sink.getvalue(), "png", shown.width, shown.height, problem)


def _sample(stored: Stored, classes: tuple[str, ...] | None) -> NewSample:
    image = stored.image
    files = {**image.members, stored.ending: stored.data, "json": _about(stored, classes)}
    return NewSample(image.key, files, stored.ending, stored.width, stored.height, image.label)


def _about(stored: Stored, classes: tuple[str, ...] | None) -> bytes:
    image = stored.image
    about: dict[str, Any] = {
        **image.about,
        "width": stored.width,
        "height": stored.height,
        "content_hash": xxhash.xxh3_128_hexdigest(image.data),
    }
    if image.source:
        about["source"] = image.source
    if classes is not None and image.label >= 0:
        about["label"] = classes[image.label]
    return json.dumps(about, sort_keys=True).encode()


class PackReport(ShardReport):
    """Proof that a shard of a packed set is complete."""

    encoded: tuple[tuple[str, str], ...] = ()
    """Source and reason of every image that was re-encoded, as PNG."""


def content_key(data: bytes) -> str:
    """Derive a key from an image's content, as crawled shards do: 20 hex digits."""
    return xxhash.xxh3_128_hexdigest(data)[:KEY_DIGITS]


def pack(
    images: Iterable[Packed],
    out: Path,
    classes: Sequence[str] | None,
    *,
    samples_per_shard: int = 1000,
    about: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write shards, ledger and manifest of a training or test set.

    Nothing is filtered, deduplicated or reordered. Unusable images are counted by reason in the
    manifest; the ledger lists them and the re-encoded ones.

    Equal images give equal bytes. Finished shards are kept without decoding their images again,
    so an interrupted call can be resumed.

    Args:
        images: Images in shard order; those of one shard are held in memory.
        out: Folder: new, empty or packed before.
        classes: Names of the labels.
        samples_per_shard: Images per shard, unusable ones included.
        about: Further fields of the manifest's `config`.

    Raises:
        ConfigError: `out` has other contents, or no image is usable.
    """
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    names = None if classes is None else tuple(classes)
    reports: list[PackReport] = []
    keys: set[str] = set()
    for number, chunk in enumerate(_chunks(images, samples_per_shard)):
        _check_keys(chunk, keys)
        reports.append(_make_shard(chunk, out, f"shard-{number:06d}", names))
    made = Manifest(
        version=2,
        ledger=count_inputs(reports, "images"),
        shards=tuple(report.info for report in reports if report.num_samples),
        classes=names,
        config={"packed": samples_per_shard, **(about or {})},
    )
    wanted = {f"shard-{number:06d}.json" for number in range(len(reports))}
    wanted |= {name for shard in made.shards for name in (shard.name, shard.index)}
    there = [*out.glob("shard-*"), *out.glob(".*.partial")]
    lines = (ledger_line(row) for report in reports for row in _ledger_rows(report))
    finish_folder(out, made, lines, [path for path in there if path.name not in wanted])
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


def _make_shard(
    images: Sequence[Packed], out: Path, stem: str, classes: tuple[str, ...] | None
) -> PackReport:
    """Write tar, index and report, unless they are already there of equal images."""
    plan_id = _plan_id(images, classes)
    path, tar_path = out / f"{stem}.json", out / f"{stem}.tar"
    done = read_report(path, PackReport, plan_id)
    if done is not None:
        return done
    path.unlink(missing_ok=True)  # It must not vouch for what it was not made from.
    (out / manifest.FILE_NAME).unlink(missing_ok=True)
    outcomes = [(image.source or image.key, store_image(image)) for image in images]
    stored = [(source, one) for source, one in outcomes if isinstance(one, Stored)]
    known: dict[str, Any] = _NO_SHARD | {"name": tar_path.name}
    if stored:
        known = write_shard(tar_path, [_sample(one, classes) for _, one in stored]).model_dump()
    report = PackReport(
        **known,
        plan_id=plan_id,
        left_out=tuple((source, one) for source, one in outcomes if isinstance(one, str)),
        encoded=tuple((source, one.problem) for source, one in stored if one.problem),
    )
    write_report(path, report)
    return report


def _plan_id(images: Sequence[Packed], classes: tuple[str, ...] | None) -> str:
    rows = []
    for image in images:
        members = [(e, xxhash.xxh3_128_hexdigest(d)) for e, d in sorted(image.members.items())]
        content = xxhash.xxh3_128_hexdigest(image.data)
        rows.append([image.key, content, image.label, image.source, dict(image.about), members])
    text = json.dumps([FORMAT_VERSION, classes, rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _ledger_rows(report: PackReport) -> list[dict[str, str]]:
    verdicts = (("quarantined", report.left_out), ("encoded", report.encoded))
    return [
        {"path": source, "verdict": verdict, "reason": reason}
        for verdict, rows in verdicts
        for source, reason in rows
    ]
