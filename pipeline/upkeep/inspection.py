"""Summarize a set of shards for a person: counts, histograms, contact sheets."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline.dali.decode import decode_rgb
from pipeline.remote.fetch import FetchConfig, read_bytes, read_if_there
from pipeline.remote.location import join
from pipeline.shards.index import ShardIndex
from pipeline.shards.manifest import PICTURES_NAME, Manifest, folder_of, read_manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import Progress
from pipeline.upkeep.verify import open_index

NUM_SHOWN = 24
"""Images on a contact sheet."""

_CONFLICT = "label conflict"
_THUMBNAIL_PX = 112
_SIDES = (0, 64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1536, 2048)
"""px, bin edges of short sides."""
_RATIOS = (1.0, 1.1, 1.25, 1.4, 1.6, 2.0, 3.0, 5.0, 10.0)
"""Bin edges of long side / short side."""


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a histogram."""

    name: str
    count: int


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small image with its caption."""

    jpeg: bytes
    width: int
    height: int
    caption: str


@dataclass(frozen=True, slots=True)
class ContactSheet:
    """Thumbnails of one kind."""

    title: str
    count: int
    """Number of images of the kind, shown or not."""
    pictures: tuple[Thumbnail, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a set of shards holds."""

    manifest: Manifest
    num_bytes: int
    """Total size of the tars."""
    image_bytes: tuple[int, int, int]
    """5th, 50th and 95th percentile of stored image sizes."""
    short_sides: tuple[Bin, ...]
    ratios: tuple[Bin, ...]
    """Long side / short side."""
    formats: tuple[Bin, ...]
    """Formats of the inputs; empty without ledgers."""
    as_is: int | None
    """Images stored unchanged; None without ledgers."""
    classes: tuple[Bin, ...]
    """Largest first."""
    purged: int
    """Samples with a tombstone."""
    sheets: tuple[ContactSheet, ...]

    def summary(self) -> dict[str, Any]:
        """Return all but the pictures for JSON."""

        def counts(bins: Sequence[Bin]) -> dict[str, int]:
            return {one.name: one.count for one in bins}

        ledger = self.manifest.ledger.model_dump(mode="json")
        return {
            **ledger,
            "notes_dropped": self.manifest.notes_dropped,
            "shards": len(self.manifest.shards),
            "samples": self.manifest.num_samples,
            "bytes": self.num_bytes,
            "image_bytes": dict(zip(("p5", "p50", "p95"), self.image_bytes, strict=True)),
            "short_sides": counts(self.short_sides),
            "ratios": counts(self.ratios),
            "formats": counts(self.formats),
            "as_is": self.as_is,
            "classes": counts(self.classes),
            "purged": self.purged,
            "notes": self.manifest.notes,
            "label_conflicts": self.manifest.label_conflicts,
        }


def inspect(location: str, *, on_progress: Progress) -> Inspection:
    """Gather counts, histograms and pictures of a set of shards.

    Raises:
        ConfigError: The manifest or an index cannot be read.
        FetchError: A file cannot be fetched.
    """
    manifest, folder = read_manifest(location), folder_of(location)
    indexes = list(_indexes(manifest, folder, on_progress))
    widths = np.concatenate([index.widths for index in indexes]).astype(np.int64)
    heights = np.concatenate([index.heights for index in indexes]).astype(np.int64)
    sizes = np.concatenate([index.sizes for index in indexes])
    labels = np.concatenate([index.labels for index in indexes])
    known = widths > 0
    short, long = np.minimum(widths, heights)[known], np.maximum(widths, heights)[known]
    formats, as_is = _of_ledgers(manifest, folder)
    low, middle, high = np.percentile(sizes, [5, 50, 95]).astype(int).tolist()
    with closing(Store(location)) as store:
        purged = len(store.purged())
        accepted = _accepted_sheet(store)
    return Inspection(
        manifest=manifest,
        num_bytes=sum(info.num_bytes for info in manifest.shards),
        image_bytes=(low, middle, high),
        short_sides=_bins(short, _SIDES, "px"),
        ratios=_bins(long / np.maximum(short, 1), _RATIOS, ""),
        formats=formats,
        as_is=as_is,
        classes=_class_counts(manifest, labels),
        purged=purged,
        sheets=(accepted, *_left_out_sheets(manifest, folder)),
    )


def _indexes(manifest: Manifest, folder: str, on_progress: Progress) -> Iterator[ShardIndex]:
    for done, info in enumerate(manifest.shards, 1):
        yield open_index(folder, info)
        on_progress(done, len(manifest.shards), "")


def _bins(values: NDArray[Any], borders: Sequence[float], unit: str) -> tuple[Bin, ...]:
    """Count values between bin edges, without empty bins at either end."""
    edges = [*borders, np.inf]
    counts = np.histogram(values, edges)[0].tolist()
    used = [n for n, count in enumerate(counts) if count]
    if not used:
        return ()
    names = [f"{a:g} to {b:g} {unit}".strip() for a, b in pairwise(borders)]
    names.append(f"{borders[-1]:g} {unit}".strip() + " and more")
    return tuple(Bin(names[n], counts[n]) for n in range(used[0], used[-1] + 1))


def _class_counts(manifest: Manifest, labels: NDArray[np.int32]) -> tuple[Bin, ...]:
    if not manifest.classes:
        return ()
    counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes)).tolist()
    pairs = sorted(zip(manifest.classes, counts, strict=True), key=lambda pair: -pair[1])
    return tuple(Bin(name, count) for name, count in pairs)


def _of_ledgers(manifest: Manifest, folder: str) -> tuple[tuple[Bin, ...], int | None]:
    """Count input formats, and images stored unchanged."""
    formats: Counter[str] = Counter()
    as_is = 0
    for info in manifest.shards:
        if info.ledger is None:
            return (), None
        raw = read_bytes(join(folder, info.ledger), FetchConfig())
        table = pq.read_table(io.BytesIO(raw), columns=["format", "as_is"])
        formats.update(table.column("format").to_pylist())
        as_is += sum(table.column("as_is").to_pylist())
    return tuple(Bin(name, count) for name, count in formats.most_common()), as_is


def _accepted_sheet(store: Store) -> ContactSheet:
    """Show accepted images, evenly spaced through the set."""
    total = store.manifest.num_samples
    ids = np.unique(np.linspace(0, total - 1, min(NUM_SHOWN, total)).astype(np.int64))
    keys = store.keys()
    samples = store.read(ids)
    pictures = []
    for position, sample_id in enumerate(ids.tolist()):
        if position in samples.damaged:
            continue
        pixels = decode_rgb(samples.payloads[position].tobytes())
        if pixels is not None:
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            pictures.append(_picture(Image.fromarray(pixels), f"{keys[sample_id]}, {size}"))
    return ContactSheet("accepted", total, tuple(pictures))


def _left_out_sheets(manifest: Manifest, folder: str) -> list[ContactSheet]:
    """Collect thumbnails of excluded images, by verdict and reason."""
    raw = read_if_there(join(folder, PICTURES_NAME))
    if raw is None:
        return []
    ledger = manifest.ledger
    counts = {"near duplicate": ledger.near_duplicate}
    counts["duplicate"] = ledger.duplicate - ledger.near_duplicate
    counts |= {f"quarantined: {reason}": n for reason, n in ledger.quarantined.items()}
    counts |= {f"filtered: {reason}": n for reason, n in ledger.filtered.items()}
    counts[_CONFLICT] = manifest.label_conflicts
    found: dict[str, list[Thumbnail]] = {}
    for row in pq.read_table(io.BytesIO(raw)).to_pylist():
        near = "near " if row["near"] else ""
        labels = row.get("label_conflict") or []
        verdict = near + ": ".join(filter(None, (row["verdict"], row["reason"])))
        kind = _CONFLICT if labels else verdict
        pictures = found.setdefault(kind, [])
        if row["thumbnail"] and len(pictures) < NUM_SHOWN:
            with Image.open(io.BytesIO(row["thumbnail"]), formats=["JPEG"]) as image:
                width, height = image.size
            caption = f"{row['path']} (for {row['winner']})" if row["winner"] else row["path"]
            caption += f": {' or '.join(labels)}?" if labels else ""
            pictures.append(Thumbnail(row["thumbnail"], width, height, caption))
    return [
        ContactSheet(kind, counts.get(kind, len(pictures)), tuple(pictures))
        for kind, pictures in sorted(found.items())
    ]


def _picture(image: Image.Image, caption: str) -> Thumbnail:
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85)
    return Thumbnail(sink.getvalue(), *image.size, caption)
