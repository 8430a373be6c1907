"""`tessera preview`: what the network sees of some images, as pictures and as one HTML page."""

import base64
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.atomic import write_atomic
from pipeline.config import Config, ConfigError, load, parse
from pipeline.explain.pictures.countermeasures import (
    Drawing,
    PreviewSection,
    image_parts,
    measure_parts,
)
from pipeline.explain.step import Explained, Subject, explain_step, open_subject
from pipeline.loading.data import DataConfig
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.pretext.multitask import PretextConfig, tasks_of
from pipeline.remote.location import redact_url as without_secrets
from training.report.templates import page_environment

PAGE = "preview.html"

_PLANNED = 32
"""Images that are planned at least, so that what is drawn for a few of them is among them."""


class PreviewConfig(Config):
    """The sections of a run's YAML that say what is seen; the others are let pass."""

    seed: int
    order: OrderConfig
    pretext: PretextConfig
    data: dict[str, Any] | None = None
    """Cache and threads; its manifest is not looked at."""
    out: Any = None
    trunk: Any = None
    optim: Any = None
    train: Any = None
    transfer: Any = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture that the page holds in itself."""

    uri: str
    """data: URI."""
    width: int
    """px."""
    height: int
    """px."""
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Block:
    """Figures side by side under a heading."""

    title: str
    text: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class TaskBlocks:
    """A task's part of the page."""

    name: str
    images: tuple[Block, ...]
    measures: tuple[Block, ...]


def run_preview(
    config: Path, overrides: Sequence[str], manifest: str, out: Path, num_images: int
) -> Path:
    """Draw the first images of epoch 0, step 0 into a new folder.

    Args:
        config: A run's YAML.
        overrides: Of its keys.
        manifest: The shards whose images are drawn.
        out: New folder.
        num_images: How many.

    Returns:
        The page.

    Raises:
        ConfigError: The config says no such thing, or the folder is not empty.
        DamageError: A sample is damaged, and the run's policy is to stop.
    """
    run = load(PreviewConfig, config, overrides)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out (={out}) is not a new folder; give one that is empty or not there.")
    if not 1 <= num_images <= run.order.global_batch:
        raise ConfigError(
            f"images (={num_images}) must be in 1..{run.order.global_batch}, the samples of a step."
        )
    alone = {"manifest": manifest, "mixture": None, "stream": None}
    data = parse(DataConfig, (run.data or {}) | alone, f"{config}: data")
    with closing(open_subject(data, run.order, run.pretext, seed=run.seed)) as subject:
        explained = explain_step(subject, 0, 0, _place(run.order, num_images))
        out.mkdir(parents=True, exist_ok=True)
        blocks = _blocks(subject, explained, out, num_images)
    about = (
        f"{without_secrets(manifest)} ({explained.fingerprint}), seed {run.seed}, epoch 0, step 0"
    )
    page = out / PAGE
    html = _render(pretext=run.pretext, config=config.name, about=about, tasks=blocks)
    write_atomic(page, html.encode("utf-8", "xmlcharrefreplace"))
    return page


def print_page(page: Path, console: Console) -> None:
    """Name the page, as the last line."""
    count = sum(1 for _ in page.parent.glob("*.png"))
    console.print(Text(f"page: {page}, and its {count} pictures beside it"), soft_wrap=True)


def _place(order: OrderConfig, num_images: int) -> RankInfo:
    """Choose a rank whose share of a step is no larger than it must be: all show the same step."""
    num_lanes = -(-max(_PLANNED, num_images) // order.lane_share)
    return RankInfo(rank=0, world_size=max(1, order.num_lanes // num_lanes))


def _blocks(
    subject: Subject, explained: Explained, out: Path, num_images: int
) -> tuple[TaskBlocks, ...]:
    found = []
    for task in tasks_of(subject.pretext):
        images = image_parts(subject.pretext, task, explained, num_images)
        measures = measure_parts(subject.pretext, task, explained)
        found.append(
            TaskBlocks(
                task.name,
                tuple(_block(part, out) for part in images),
                tuple(_block(part, out) for part in measures),
            )
        )
    return tuple(found)


def _block(part: PreviewSection, out: Path) -> Block:
    return Block(part.title, part.text, tuple(_figure(one, out) for one in part.drawings))


def _figure(drawing: Drawing, out: Path) -> Figure:
    path = out / drawing.name
    drawing.image.save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    size = drawing.image.size
    return Figure(f"data:image/png;base64,{data}", *size, drawing.alt, drawing.caption)


def _render(**parts: Any) -> str:
    environment = page_environment(Path(__file__).parent)
    return environment.get_template("preview.html").render(**parts)
