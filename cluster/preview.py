"""`tessera preview`: what the network sees of some images, as pictures and as one HTML page."""

import base64
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cluster.screen import ConfigFile, Manifest, Overrides, say
from pipeline.atomic import write_atomic
from pipeline.config import Config, ConfigError, parse, read_yaml
from pipeline.remote.location import redact_url

if TYPE_CHECKING:
    from pipeline.explain.pictures.countermeasures import Drawing, PreviewSection
    from pipeline.explain.step import Explained, Subject
    from pipeline.loading.mixture import RankInfo
    from pipeline.loading.order import OrderConfig

PAGE = "preview.html"

_PLANNED = 32
"""Minimum number of images planned, so that draws made for a few images appear among them."""


def preview(
    config: ConfigFile,
    manifest: Manifest,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for page and pictures.")],
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="How many images are drawn.")] = 4,
) -> None:
    """Draw what the network sees of some images, and what each countermeasure does.

    The loader makes epoch 0, step 0 of a run with this config on these shards. Of the config,
    pretext, order, seed and data are read.

    Example: tessera preview configs/demo/pretrain.yaml runs/demo/shards --out preview/
    """
    page = run_preview(config, overrides, manifest, out, images)
    count = sum(1 for _ in page.parent.glob("*.png"))
    say(Console(), f"page: {page}, and its {count} pictures beside it")


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture embedded in the page."""

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
    """The page's part for one task."""

    name: str
    images: tuple[Block, ...]
    measures: tuple[Block, ...]


def run_preview(
    config: Path, overrides: Sequence[str] | None, manifest: str, out: Path, num_images: int
) -> Path:
    """Draw the first images of epoch 0, step 0 into a new folder.

    Args:
        config: A run's YAML.
        overrides: Overrides of its keys.
        manifest: The shards whose images are drawn.
        out: New folder.
        num_images: How many.

    Returns:
        The page.

    Raises:
        ConfigError: The config does not allow it, or the folder is not empty.
        DamageError: A sample is damaged, and the run's policy is to stop.
    """
    raw = read_yaml(config, overrides or ())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out (={out}) is not a new folder; give one that is empty or not there.")
    from pipeline.explain.step import explain_step, open_subject
    from pipeline.loading.data import DataConfig

    run = parse(_preview_config(), raw, str(config))
    if not 1 <= num_images <= run.order.global_batch:
        raise ConfigError(
            f"images (={num_images}) must be in 1..{run.order.global_batch}, the samples of a step."
        )
    alone = {"manifest": manifest, "mixture": None, "stream": None}
    data = parse(DataConfig, (run.data or {}) | alone, f"{config}: data")
    with closing(open_subject(data, run.order, run.pretext, seed=run.seed)) as subject:
        explained = explain_step(subject, 0, 0, _rank_info(run.order, num_images))
        out.mkdir(parents=True, exist_ok=True)
        blocks = _blocks(subject, explained, out, num_images)
    about = f"{redact_url(manifest)} ({explained.fingerprint}), seed {run.seed}, epoch 0, step 0"
    page = out / PAGE
    html = _render(pretext=run.pretext, config=config.name, about=about, tasks=blocks)
    write_atomic(page, html.encode("utf-8", "xmlcharrefreplace"))
    return page


def _preview_config() -> Any:
    """Return the model of the sections that decide what is seen; the others are let pass."""
    from pipeline.loading.order import OrderConfig
    from pipeline.pretext.multitask import PretextConfig

    class PreviewConfig(Config):
        seed: int
        order: OrderConfig
        pretext: PretextConfig
        data: dict[str, Any] | None = None
        """Cache and threads; its manifest is ignored."""
        out: Any = None
        trunk: Any = None
        optim: Any = None
        train: Any = None
        transfer: Any = None

    return PreviewConfig


def _rank_info(order: "OrderConfig", num_images: int) -> "RankInfo":
    """Choose a rank with the smallest sufficient share of a step; all ranks show the same step."""
    from pipeline.loading.mixture import RankInfo

    num_lanes = -(-max(_PLANNED, num_images) // order.lane_share)
    return RankInfo(rank=0, world_size=max(1, order.num_lanes // num_lanes))


def _blocks(
    subject: "Subject", explained: "Explained", out: Path, num_images: int
) -> tuple[TaskBlocks, ...]:
    from pipeline.explain.pictures.countermeasures import image_parts, measure_parts
    from pipeline.pretext.multitask import tasks_of

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


def _block(part: "PreviewSection", out: Path) -> Block:
    return Block(part.title, part.text, tuple(_figure(one, out) for one in part.drawings))


def _figure(drawing: "Drawing", out: Path) -> Figure:
    path = out / drawing.name
    drawing.image.save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    size = drawing.image.size
    return Figure(f"data:image/png;base64,{data}", *size, drawing.alt, drawing.caption)


def _render(**parts: Any) -> str:
    from training.report.templates import page_environment

    environment = page_environment(Path(__file__).parent)
    return environment.get_template("preview.html").render(**parts)
