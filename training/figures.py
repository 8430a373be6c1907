"""The report's pictures: samples and first-layer filters."""

# Shapes: O filters, K filter size.

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.shards.store import Store

_THUMBNAIL_PX = 224
_FILTER_COLUMNS = 8


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that the page holds in itself."""

    uri: str
    """data: URI."""
    width: int
    """px."""
    height: int
    """px."""
    alt: str


@dataclass(frozen=True, slots=True)
class Filters:
    """The first layer's weights, before and after."""

    random: Picture
    pretrained: Picture
    change: float
    """Norm of the difference as a share of the norm before."""


def contact_sheet(store: Store, num: int) -> list[Picture]:
    """Show `num` samples, evenly spaced over all shards; the same ones every time."""
    total = store.manifest.num_samples
    ids = np.unique(np.linspace(0, total - 1, min(num, total)).round().astype(np.int64))
    samples = store.read(ids).require_whole()
    classes = store.manifest.classes
    pictures = []
    for sample_id, payload, label in zip(ids, samples.payloads, samples.labels, strict=True):
        name = f", class {classes[label]}" if classes and label >= 0 else ""
        image = _decode(payload)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
        pictures.append(picture(image, "JPEG", f"Sample {sample_id}{name}"))
    return pictures


def filters(random: Tensor, pretrained: Tensor) -> Filters:
    """Show first-layer weights, (O, 3, K, K) each."""
    change = (pretrained - random).norm() / random.norm()
    count, _, side, _ = random.shape
    about = f"{count} filters of {side} x {side} x 3"
    return Filters(
        random=_filter_sheet(random, f"{about}, random"),
        pretrained=_filter_sheet(pretrained, f"{about}, pretrained"),
        change=float(change),
    )


def picture(image: Image.Image, kind: str, alt: str) -> Picture:
    """Encode an image as PNG or JPEG into the page."""
    sink = io.BytesIO()
    image.save(sink, kind, quality=85, optimize=True)
    data = base64.b64encode(sink.getvalue()).decode()
    uri = f"data:image/{kind.lower()};base64,{data}"
    return Picture(uri, image.width, image.height, alt)


def _filter_sheet(weights_O3KK: Tensor, alt: str) -> Picture:
    """Lay filters on a grid, one pixel a weight; middle gray is 0, each has its own scale."""
    peak = weights_O3KK.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    shown = (weights_O3KK / peak * 127 + 128).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    count, side = shown.shape[:2]
    rows = -(-count // _FILTER_COLUMNS)
    sheet = Image.new("RGBA", (_FILTER_COLUMNS * (side + 1) - 1, rows * (side + 1) - 1))
    for position, tile in enumerate(shown):
        row, column = divmod(position, _FILTER_COLUMNS)
        sheet.paste(Image.fromarray(tile), (column * (side + 1), row * (side + 1)))
    return picture(sheet, "PNG", alt)


def _decode(payload: NDArray[np.uint8]) -> Image.Image:
    with Image.open(io.BytesIO(payload.tobytes())) as image:
        return image.convert("RGB")
