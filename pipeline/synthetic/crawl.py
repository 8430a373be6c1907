"""A small synthetic crawl, for trying the whole pipeline without a download.

The files are as messy as a real crawl: hosts and dates as folders, three formats, upper-case or
wrong extensions, duplicates under other names, broken files.
"""

import concurrent.futures
import io
import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator

from pipeline.config import ConfigError
from pipeline.synthetic.objects import CLASSES
from pipeline.synthetic.scene import render_picture

FOLDER_NAME = "synthetic-crawl"

Format = Literal["JPEG", "PNG", "WEBP"]
Damage = Literal["truncated", "html", "empty", "text"]

_CHUNK = 32  # Files per task: a third of a second, so that Ctrl-C is quick.
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawledFile:
    """One file of the crawl, before it is rendered."""

    path: str
    """POSIX path relative to the crawl; the last folder is the class."""
    index: int
    """Number of its picture; files with the same index have the same bytes."""
    format: Format
    """Actual encoding, whatever the extension says."""
    damage: Damage | None = None
    """What is wrong with the file; None for an intact picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawlSummary:
    """What was rendered; `num_images + num_duplicates + sum(broken.values()) == num_files`."""

    root: Path
    """The folder to shard."""
    classes: tuple[str, ...]
    """Names of the last folder level, in alphabetical order."""
    num_files: int
    num_images: int
    """Intact pictures, all different."""
    num_duplicates: int
    """Intact pictures that are byte-identical to one of the `num_images`."""
    broken: dict[str, int]
    """Numbers of other files, by kind of damage."""
    formats: dict[str, int]
    """Numbers of the `num_images` pictures by encoding: JPEG, PNG, WEBP."""


def render_crawl(
    out: Path, *, num_images: int, seed: int, on_progress: Callable[[int, int], None]
) -> CrawlSummary:
    """Render a crawl of `num_images` different pictures into `out / "synthetic-crawl"`.

    Duplicates (1%) and broken files (0.6%, at least one of each kind) come on top. The bytes
    depend on (seed, index) and the versions of Pillow and NumPy, not on the number of processes.
    The folder gets its final name once it is complete.

    Args:
        out: Folder for the crawl; made if missing.
        num_images: At least one per class.
        seed: Not negative.
        on_progress: Called with (files written, total files) several times a second.

    Raises:
        ConfigError: `num_images` is too small, or the crawl already exists.
    """
    if num_images < len(CLASSES):
        raise ConfigError(
            f"num_images (={num_images}) must be at least {len(CLASSES)}, one per class; raise it."
        )
    root, partial = out / FOLDER_NAME, out / f"{FOLDER_NAME}.partial"
    if root.exists():
        raise ConfigError(f"out (={out}) already holds {FOLDER_NAME}; remove it or choose another.")
    shutil.rmtree(partial, ignore_errors=True)
    files = plan_crawl(num_images, seed)
    for folder in {(partial / file.path).parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
    try:
        _write_all(partial, files, seed, on_progress)
    except BaseException:  # Includes Ctrl-C: leave nothing half-written.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.replace(root)
    return CrawlSummary(
        root=root,
        classes=CLASSES,
        num_files=len(files),
        num_images=num_images,
        num_duplicates=_num_duplicates(num_images),
        broken=dict(Counter(file.damage for file in files if file.damage)),
        formats=dict(Counter(file.format for file in files[:num_images])),
    )


def plan_crawl(num_images: int, seed: int) -> list[CrawledFile]:
    """Plan path, format and damage of every file; the first `num_images` are all different."""
    files = [_plan_file(seed, index) for index in range(num_images)]
    rng = np.random.default_rng((seed, num_images))
    for index in rng.choice(num_images, _num_duplicates(num_images), replace=False):
        original = files[index]
        name = f"copy-of-{PurePosixPath(original.path).name}"
        path = f"{_folder(rng)}/{_class_name(original.index)}/{name}"
        files.append(CrawledFile(path=path, index=original.index, format=original.format))
    kinds: tuple[Damage, ...] = get_args(Damage)
    for i in range(max(len(kinds), round(0.006 * num_images))):
        index, kind = num_images + i, kinds[i % len(kinds)]
        name = f"notes_{index:05d}.txt" if kind == "text" else f"img_{index:05d}.jpg"
        path = f"{_folder(rng)}/{_class_name(index)}/{name}"
        files.append(CrawledFile(path=path, index=index, format="JPEG", damage=kind))
    return files


def file_bytes(file: CrawledFile, seed: int) -> bytes:
    """Render and encode one file; a pure function of its arguments."""
    match file.damage:
        case "empty":
            return b""
        case "text":
            return f"Picture {file.index} could not be fetched: 404.\n".encode()
        case "html":
            body = "<!DOCTYPE html>\n<html><body><h1>403 Forbidden</h1></body></html>\n"
            return body.encode()
        case _:
            rng = np.random.default_rng((seed, file.index, 1))
            whole = _encode(rng, file)
            return whole[: int(len(whole) * rng.uniform(0.2, 0.8))] if file.damage else whole


def _num_duplicates(num_images: int) -> int:
    return max(1, round(0.01 * num_images))


def _class_name(index: int) -> str:
    return CLASSES[index % len(CLASSES)]


def _plan_file(seed: int, index: int) -> CrawledFile:
    rng = np.random.default_rng((seed, index, 0))
    share = (
        index * _GOLDEN + seed * 0.1
    ) % 1.0  # Evenly spread, so that small crawls have all formats.
    kind: Format = "PNG" if share < 0.05 else "WEBP" if share > 0.95 else "JPEG"
    endings = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
    ending, luck = endings[kind], rng.random()
    if luck < 0.03:
        ending = ending.upper()
    elif luck < 0.04:
        ending = str(rng.choice([other for other in endings.values() if other != ending]))
    elif luck < 0.08 and kind == "JPEG":
        ending = ".jpeg"
    stem = rng.choice(["img_{:05d}", "img_{:05d}", "DSC{:05d}", "{:05d}.large", "photo {:05d}"])
    path = f"{_folder(rng)}/{_class_name(index)}/{stem.format(index)}{ending}"
    return CrawledFile(path=path, index=index, format=kind)


def _folder(rng: Generator) -> str:
    host, year, month = rng.integers([1, 2019, 1], [13, 2025, 13])
    return f"host-{host:02d}.example/{year}/{month:02d}"


def _encode(rng: Generator, file: CrawledFile) -> bytes:
    picture, buffer = render_picture(rng, _class_name(file.index)), io.BytesIO()
    quality = int(rng.integers(75, 96))
    match file.format:
        case "JPEG":
            subsampling = "4:4:4" if rng.random() < 0.3 else "4:2:0"
            picture.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        case "PNG":
            picture.save(buffer, "PNG", compress_level=1)
        case "WEBP":
            picture.save(buffer, "WEBP", quality=quality, method=0)
    return buffer.getvalue()


def _write_all(
    root: Path, files: list[CrawledFile], seed: int, on_progress: Callable[[int, int], None]
) -> None:
    on_progress(0, len(files))
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=min(os.cpu_count() or 1, len(chunks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    ) as pool:
        tasks = [pool.submit(_write_chunk, root, chunk, seed) for chunk in chunks]
        try:
            done = 0
            for task in concurrent.futures.as_completed(tasks):
                done += task.result()
                on_progress(done, len(files))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and exit when the parent is gone, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only workers follow"
    parent.join()
    os._exit(1)


def _write_chunk(root: Path, files: list[CrawledFile], seed: int) -> int:
    """Write some files; returns how many."""
    for file in files:
        (root / file.path).write_bytes(file_bytes(file, seed))
    return len(files)
