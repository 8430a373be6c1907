"""Write one shard from its spec: tar, index and report; whole or not at all, byte for byte."""

import hashlib
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset
import xxhash

from pipeline.config import ConfigError, parse
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.encode import encode_jpeg
from pipeline.crawl.gate import hash_content
from pipeline.crawl.plan import Plan, Sample
from pipeline.dali.decode import decode_rgb
from pipeline.shards.index import ShardIndex, encode_index, hash_spans
from pipeline.shards.manifest import ShardInfo, write_atomic
from pipeline.shards.tar import walk_tar

_FORMAT_VERSION = 2  # Raise when equal specs would give other bytes: old shards are rewritten.


class ShardReport(ShardInfo):
    """Proof that a shard is whole: written last, next to it."""

    plan_id: str
    """Of the spec that made the shard."""


@dataclass(frozen=True, slots=True)
class ShardSpec:
    """Everything that decides the bytes of one shard, and where it goes."""

    folder: Path
    stem: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...] | None
    config: ShardConfig

    @property
    def tar_path(self) -> Path:
        """The shard itself."""
        return self.folder / f"{self.stem}.tar"

    @property
    def index_path(self) -> Path:
        """Its index."""
        return self.folder / f"{self.stem}.parquet"

    @property
    def report_path(self) -> Path:
        """Its report."""
        return self.folder / f"{self.stem}.json"

    @property
    def plan_id(self) -> str:
        """Name what the shard must hold: equal ids give equal bytes."""
        rows = [[s.content_hash, s.source.path, s.as_is, s.label] for s in self.samples]
        text = json.dumps([_FORMAT_VERSION, self.config.model_dump(), self.classes, rows])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Payload:
    jpeg: bytes
    width: int
    height: int


def shard_specs(plan: Plan, folder: Path, config: ShardConfig) -> list[ShardSpec]:
    """Name the shards of `plan` in order."""
    return [
        ShardSpec(folder, f"shard-{number:06d}", samples, plan.classes, config)
        for number, samples in enumerate(plan.shards)
    ]


def write_shard(spec: ShardSpec) -> ShardReport:
    """Write the shard of `spec`, or return at once when it is already there.

    The index is made by walking the finished tar, so an offset can only be what was written. Each
    payload is decoded by the decoder that trains.

    Raises:
        ConfigError: A source has changed or vanished since it was examined.
    """
    done = finished_report(spec)
    if done is not None:
        return done
    spec.report_path.unlink(missing_ok=True)  # It must never vouch for files it was not made from.
    partial = spec.folder / f".{spec.tar_path.name}.{os.getpid()}.partial"
    try:
        sizes = _write_tar(partial, spec)
        with (
            partial.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
        ):
            with memoryview(tar) as buffer:
                index = _index_tar(buffer, spec, sizes)
                sha256 = hashlib.sha256(buffer).hexdigest()
            num_bytes = len(tar)
        encoded = encode_index(index)
        write_atomic(spec.index_path, encoded)
        partial.replace(spec.tar_path)
    finally:
        partial.unlink(missing_ok=True)
    report = ShardReport(
        name=spec.tar_path.name,
        index=spec.index_path.name,
        num_samples=len(spec.samples),
        num_bytes=num_bytes,
        sha256=sha256,
        index_sha256=hashlib.sha256(encoded).hexdigest(),
        plan_id=spec.plan_id,
    )
    write_atomic(spec.report_path, report.model_dump_json(indent=1).encode())
    return report


def finished_report(spec: ShardSpec) -> ShardReport | None:
    """Read the report of a shard that is there, whole and made from an equal spec."""
    try:
        raw = json.loads(spec.report_path.read_text(encoding="utf-8"))
        report = parse(ShardReport, raw, str(spec.report_path))
        num_bytes = spec.tar_path.stat().st_size
        index_sha256 = hashlib.sha256(spec.index_path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
    found = (report.plan_id, report.num_bytes, report.index_sha256)
    return report if found == (spec.plan_id, num_bytes, index_sha256) else None


def _write_tar(path: Path, spec: ShardSpec) -> list[tuple[int, int]]:
    """Write the members; return (width, height) of each image as the training decoder sees it."""
    sizes = []
    with path.open("wb") as file:
        # Owner, mode and time are constants: the bytes must not depend on machine or moment.
        with webdataset.TarWriter(
            file, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False
        ) as writer:
            for sample in spec.samples:
                payload = _make_payload(sample, spec.config)
                about: dict[str, object] = {
                    "source": sample.source.path,
                    "width": payload.width,
                    "height": payload.height,
                }
                if spec.classes is not None and sample.label >= 0:
                    about["label"] = spec.classes[sample.label]
                text = json.dumps(about, sort_keys=True)
                writer.write({"__key__": sample.key, "jpg": payload.jpeg, "json": text.encode()})
                sizes.append((payload.width, payload.height))
        file.flush()
        os.fsync(file.fileno())
    return sizes


def _make_payload(sample: Sample, config: ShardConfig) -> _Payload:
    path = sample.source.path
    try:
        data = Path(sample.source.file).read_bytes()
    except FileNotFoundError:
        data = b""
    if hash_content(data) != sample.content_hash:
        raise ConfigError(
            f"source (={path}) changed while the shards were made. "
            "Run the same command again with --resume once the sources stay as they are."
        )
    jpeg = data if sample.as_is else encode_jpeg(data, sample.image_format, config.max_side)
    pixels = decode_rgb(jpeg)
    if pixels is None:
        raise RuntimeError(f"source (={path}) was accepted, but its stored form does not decode.")
    height, width, _ = pixels.shape
    return _Payload(jpeg, width, height)


def _index_tar(buffer: memoryview, spec: ShardSpec, sizes: list[tuple[int, int]]) -> ShardIndex:
    members = list(walk_tar(buffer, spec.tar_path.name))
    names = [f"{sample.key}.{ending}" for sample in spec.samples for ending in ("jpg", "json")]
    assert [member.name for member in members] == names, "the writer changed the order"
    images = members[::2]
    hashes = [xxhash.xxh3_64_intdigest(buffer[m.offset : m.offset + m.size]) for m in images]
    widths, heights = np.array(sizes, np.int32).T
    starts = np.array([member.start for member in images], np.int64)
    return ShardIndex(
        keys=tuple(sample.key for sample in spec.samples),
        starts=starts,
        offsets=np.array([member.offset for member in images], np.int64),
        sizes=np.array([member.size for member in images], np.int64),
        widths=widths,
        heights=heights,
        hashes=np.array(hashes, np.uint64),
        span_hashes=hash_spans(buffer, starts),
        labels=np.array([sample.label for sample in spec.samples], np.int32),
    )
