"""Labelled images that are trusted already into a folder of shards: all, in the given order."""

import hashlib
import io
import json
import mmap
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image
from pydantic import ValidationError

from pipeline.atomic import write_atomic
from pipeline.config import Config, ConfigError
from pipeline.dali.decode import decode_rgb
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.decoded import RefusedError
from pipeline.ingest.gate.judge import decode
from pipeline.shards import manifest
from pipeline.shards.headers import MAX_PIXELS, HeaderError, read_size
from pipeline.shards.index import ShardIndex, encode_index, hash_spans
from pipeline.shards.manifest import Ledger, Manifest, ShardInfo
from pipeline.shards.samples import group_members
from pipeline.shards.tar import Member, walk_tar
from pipeline.shards.writer import write_samples

_WHOLE = ShardConfig(max_side=16_000, max_aspect=4.0, max_pixels=MAX_PIXELS)
"""Nothing is reduced: a side of this length with the next longer one exceeds max_pixels."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One image on its way into a shard."""

    key: str
    """Its name in the shard, no other image's; without a dot."""
    data: bytes
    """The file, as it was found."""
    label: int = -1
    """Class number, -1 where the image has none, or several."""
    source: str = ""
    """Where it was found, in plain Unicode: named in the ledger and in the sample's .json."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the sample's .json says."""
    members: Mapping[str, bytes] = field(default_factory=dict)
    """Other files of the sample, by ending: xml."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a shard stores of an image."""

    image: Packed
    data: bytes
    ending: str
    width: int
    """px."""
    height: int
    """px."""
    problem: str = ""
    """Why `data` is not the file's own bytes; empty where it is."""


def store_image(image: Packed) -> Stored | str:
    """Return what a shard stores of an image, or the reason why it stores none.

    JPEG, PNG and WebP are stored byte for byte. What the decoder that trains does not take, and
    Pillow does, is stored as RGB PNG, upright, alpha on white.
    """
    data = image.data
    try:
        width, height = read_size(memoryview(data))
    except HeaderError as error:
        # No JPEG, PNG or WebP: another format. What else is wrong, no other decoder mends.
        return _encode(image, "format") if error.reason == "header" else error.reason
    pixels = decode_rgb(data)
    # This decoder turns images as EXIF says; the loader takes them as they are stored.
    if pixels is None or sorted(pixels.shape[:2]) != sorted((height, width)):
        return _encode(image, "decoder_refuses")
    ending = "jpg" if data[:2] == b"\xff\xd8" else "png" if data[1:4] == b"PNG" else "webp"
    return Stored(image, data, ending, width, height)


def write_files(stored: Sequence[Stored], path: Path, classes: tuple[str, ...] | None) -> ShardInfo:
    """Write a tar and its index, each whole or not at all; equal images give equal bytes.

    The index is made by walking the finished tar.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _write_tar(partial, stored, classes)
        with (
            partial.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
        ):
            with memoryview(tar) as buffer:
                encoded = encode_index(_index_tar(buffer, stored, path.name))
                sha256 = hashlib.sha256(buffer).hexdigest()
            num_bytes = len(tar)
        index_path = path.with_suffix(".parquet")
        write_atomic(index_path, encoded)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return ShardInfo(
        name=path.name,
        index=index_path.name,
        num_samples=len(stored),
        num_bytes=num_bytes,
        sha256=sha256,
        index_sha256=hashlib.sha256(encoded).hexdigest(),
    )


def _encode(image: Packed, problem: str) -> Stored | str:
    """Decode as the gate does, strictly, and store without loss."""
    try:
        pixels = decode(image.data, _WHOLE).in_colour()
    except RefusedError as error:
        return error.reason
    shown = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    sink = io.BytesIO()
    shown.save(sink, "PNG")
    return Stored(image, sink.getvalue(), "png", shown.width, shown.height, problem)


def _write_tar(path: Path, stored: Sequence[Stored], classes: tuple[str, ...] | None) -> None:
    with path.open("wb") as file:
        write_samples(file, ((one.image.key, _files(one, classes)) for one in stored))
        os.fsync(file.fileno())


def _files(one: Stored, classes: tuple[str, ...] | None) -> dict[str, bytes]:
    return {**one.image.members, one.ending: one.data, "json": _about(one, classes)}


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


def _index_tar(buffer: memoryview, stored: Sequence[Stored], shard: str) -> ShardIndex:
    samples = group_members(walk_tar(buffer, shard), shard)
    assert [s.key for s in samples] == [s.image.key for s in stored], "the writer changed the order"
    images = [sample.find_image() for sample in samples]
    found = [image for image in images if isinstance(image, Member)]
    assert len(found) == len(stored), "a sample has another image, or none"
    hashes = [xxhash.xxh3_64_intdigest(buffer[m.offset : m.offset + m.size]) for m in found]
    starts = np.array([sample.start for sample in samples], np.int64)
    return ShardIndex(
        keys=tuple(sample.key for sample in samples),
        starts=starts,
        offsets=np.array([member.offset for member in found], np.int64),
        sizes=np.array([member.size for member in found], np.int64),
        widths=np.array([one.width for one in stored], np.int32),
        heights=np.array([one.height for one in stored], np.int32),
        hashes=np.array(hashes, np.uint64),
        span_hashes=hash_spans(buffer, starts),
        labels=np.array([one.image.label for one in stored], np.int32),
    )


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
