"""The report's pictures: samples and first-layer filters."""

# Shapes: O filters, K filter size.

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.config import ConfigError
from pipeline.shards.store import Store

_THUMBNAIL_PX = 224
_FILTER_COLUMNS = 8
_FILTER_SCALE = 8
_SHEET_COLUMNS = 6
_SHEET_GAP = 8
_COMPRESSION = 3  # Half the time of Pillow's own choice, files a twentieth larger.


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that the page holds in itself."""

    data: bytes
    """The file."""
    kind: str
    """PNG or JPEG."""
    width: int
    """px."""
    height: int
    """px."""
    alt: str

    @property
    def uri(self) -> str:
        """The file as a data: URI."""
        return f"data:image/{self.kind.lower()};base64,{base64.b64encode(self.data).decode()}"

    @property
    def png(self) -> bytes:
        """The file as PNG."""
        return self.data if self.kind == "PNG" else png_of(_opened(self))


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
    return Picture(sink.getvalue(), kind, image.width, image.height, alt)


def png_of(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    sink = io.BytesIO()
    image.save(sink, "PNG", compress_level=_COMPRESSION)
    return sink.getvalue()


def one_sheet(pictures: Sequence[Picture]) -> Image.Image:
    """Lay pictures of a contact sheet on a grid, each in the middle of its cell."""
    columns = min(_SHEET_COLUMNS, len(pictures))
    step = _THUMBNAIL_PX + _SHEET_GAP
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * step + _SHEET_GAP, rows * step + _SHEET_GAP), "white")
    for number, shown in enumerate(pictures):
        row, column = divmod(number, columns)
        left = _SHEET_GAP + column * step + (_THUMBNAIL_PX - shown.width) // 2
        top = _SHEET_GAP + row * step + (_THUMBNAIL_PX - shown.height) // 2
        sheet.paste(_opened(shown), (left, top))
    return sheet


def stored_picture(path: Path, alt: str) -> Picture:
    """Read a PNG that a stage has left; photographs in it are small on the page as JPEG.

    Raises:
        ConfigError: There is no whole picture.
    """
    try:
        with Image.open(path) as image:
            return picture(image.convert("RGB"), "JPEG", alt)
    except (OSError, SyntaxError):  # What Pillow makes of a broken PNG.
        raise ConfigError(f"picture (={path}) cannot be read; run that stage again.") from None


def _opened(shown: Picture) -> Image.Image:
    with Image.open(io.BytesIO(shown.data)) as image:
        return image.convert("RGB")


def _filter_sheet(weights_O3KK: Tensor, alt: str) -> Picture:
    """Lay filters on a grid, a square a weight; middle gray is 0, each has its own scale."""
    peak = weights_O3KK.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
    shown = (weights_O3KK / peak * 127 + 128).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    count, side = shown.shape[:2]
    rows = -(-count // _FILTER_COLUMNS)
    sheet = Image.new("RGBA", (_FILTER_COLUMNS * (side + 1) - 1, rows * (side + 1) - 1))
    for position, tile in enumerate(shown):
        row, column = divmod(position, _FILTER_COLUMNS)
        sheet.paste(Image.fromarray(tile), (column * (side + 1), row * (side + 1)))
    large = (sheet.width * _FILTER_SCALE, sheet.height * _FILTER_SCALE)
    return picture(sheet.resize(large, Image.Resampling.NEAREST), "PNG", alt)


def _decode(payload: NDArray[np.uint8]) -> Image.Image:
    with Image.open(io.BytesIO(payload.tobytes())) as image:
        return image.convert("RGB")
