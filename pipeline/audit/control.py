"""The content-free control: images that show nothing, as JPEGs in real shards."""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.audit.gather import Progress, Source
from pipeline.shards.manifest import Ledger, Manifest, write_manifest
from pipeline.shards.writer import write_images

KINDS = ("1/f noise", "white noise", "1/f noise", "constant")
"""In turn; noise whose amplitude falls as 1/f has bright and dark regions, as photographs have."""
SUBSAMPLINGS = ("4:4:4", "4:2:0")
QUALITY = 90
_FIELD = 1024
_MOST_PIXELS = 400_000
"""Larger images are made smaller, with the same shape: noise is dear to encode."""
_SAMPLES_PER_SHARD = 200


@dataclass(frozen=True, slots=True)
class Control:
    """Which images without content are made."""

    sizes: NDArray[np.int32]
    """(N, 2), height and width of the images that they stand beside; drawn from."""
    num: int
    """Images; up to one for each shard fewer are written, so that shards are equal."""
    seed: int
    """The same one gives the same images."""
    subsamplings: tuple[str, ...] = SUBSAMPLINGS
    """How chroma is stored, in turn."""
    kinds: tuple[str, ...] = KINDS


@contextmanager
def stored_control(source: Source, control: Control, on_progress: Progress) -> Iterator[Source]:
    """Keep images without content in shards of their own, as long as the block runs."""
    num = control.num
    with tempfile.TemporaryDirectory(prefix="tessera-audit-") as folder:
        out = Path(folder) / "control"
        made = lambda n: on_progress(n / num, f"control: {n} of {num} images made")  # noqa: E731
        write_control(control, out, made)
        yield source.at(str(out))


def write_control(control: Control, out: Path, on_progress: Callable[[int], None]) -> None:
    """Write shards of images without content: what a probe finds in them, the pipeline put there.

    Kinds and chroma samplings take turns, so that there is as much of each sort.

    Args:
        control: Which.
        out: New folder.
        on_progress: Gets the number of images made, now and then.
    """
    rng = np.random.Generator(np.random.Philox(control.seed))
    num, samplings, kinds = control.num, control.subsamplings, control.kinds
    fields = {"white noise": _white(rng), "1/f noise": _pink(rng)}
    drawn = control.sizes[rng.integers(len(control.sizes), size=num)]
    images = []
    for number, (height, width) in enumerate(_bounded(drawn).tolist()):
        kind = kinds[number % len(kinds)]
        pixels = _picture(kind, fields, height, width, rng)
        images.append(encode(pixels, samplings[number // len(kinds) % len(samplings)]))
        if number % _SAMPLES_PER_SHARD == _SAMPLES_PER_SHARD - 1:
            on_progress(number + 1)
    write_set(images, out)


def write_set(images: Sequence[bytes], out: Path) -> None:
    """Write JPEGs into shards of one size in a new folder; a remainder is dropped."""
    num_shards = -(-len(images) // _SAMPLES_PER_SHARD)
    size = len(images) // num_shards
    out.mkdir()
    shards = [
        write_images(out / f"shard-{n:06d}.tar", images[n * size : (n + 1) * size])
        for n in range(num_shards)
    ]
    ledger = Ledger.all_accepted(num_shards * size)
    write_manifest(
        out, Manifest(version=2, shards=tuple(shards), classes=None, ledger=ledger, config={})
    )


def _bounded(sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    scale = np.sqrt(np.minimum(1, _MOST_PIXELS / sizes.astype(np.float64).prod(axis=1)))
    bounded: NDArray[np.int64] = np.rint(sizes * scale[:, None]).clip(1).astype(np.int64)
    return bounded


def _picture(
    kind: str,
    fields: dict[str, NDArray[np.uint8]],
    height: int,
    width: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Make an image (height, width, 3); noise is cut out of a field that has no borders."""
    if kind == "constant":
        return np.broadcast_to(rng.integers(256, size=3, dtype=np.uint8), (height, width, 3)).copy()
    field = fields[kind]
    down = (np.arange(height) + rng.integers(_FIELD)) % _FIELD
    right = (np.arange(width) + rng.integers(_FIELD)) % _FIELD
    turned = np.rot90(field, int(rng.integers(4)))
    if rng.random() < 0.5:
        turned = turned[:, ::-1]
    cut: NDArray[np.uint8] = turned[down[:, None], right, :][..., rng.permutation(3)]
    return cut


def _white(rng: np.random.Generator) -> NDArray[np.uint8]:
    return _as_pixels(rng.standard_normal((_FIELD, _FIELD, 3)))


def _pink(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make noise whose amplitude falls as 1/f, as that of photographs does, colors correlated."""
    waves = np.fft.rfft2(rng.standard_normal((_FIELD, _FIELD, 3)), axes=(0, 1))
    frequency = np.hypot(np.fft.fftfreq(_FIELD)[:, None], np.fft.rfftfreq(_FIELD))
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(waves / frequency[..., None], s=(_FIELD, _FIELD), axes=(0, 1))
    return _as_pixels(noise + 2 * noise.mean(axis=2, keepdims=True))


def _as_pixels(noise: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scale to mean 128 and deviation 40, gray levels."""
    scaled = (noise - noise.mean()) / noise.std() * 40 + 128
    pixels: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return pixels


def encode(pixels: NDArray[np.uint8], subsampling: str, *, quality: int = QUALITY) -> bytes:
    """Encode pixels (H, W, 3) as a JPEG."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=quality, subsampling=subsampling)
    return sink.getvalue()
