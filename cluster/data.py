"""`tessera data ...`: public data sets as labelled shards, downloaded or from a local copy."""

import shutil
import socket
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args
from urllib.error import HTTPError

import typer
from rich.console import Console

from cluster.screen import Bar, bar, say
from pipeline.config import ConfigError

if TYPE_CHECKING:
    from pipeline.ingest.labelled import Packed
    from pipeline.shards.manifest import Manifest
    from training.transfer.images.known_sets import KnownSet, SetName, Side

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Get labelled images for the transfer."
)


@app.callback()
def _data() -> None:
    """Make `get` a command of a group, although it is the only one."""


@app.command()
def get(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="caltech101, imagenette, cifar10, cifar100, flowers102, pets, voc2007 or voc2012.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the shards train and test; of caltech101, for its shards."),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder with an unpacked copy, as torchvision lays it out; downloads nothing."
        ),
    ] = None,
) -> None:
    """Make labelled shards of a public data set, with its official split.

    Downloads go to OUT-files and may be removed when the shards are done. Called again, it
    continues where it stopped.

    Example: tessera data get voc2007 --out data/voc2007
    """
    from training.transfer.images.known_sets import SetName

    known = get_args(SetName)
    if name not in known:
        raise ConfigError(f"name (={name}) must be one of {', '.join(known)}.")
    get_data(cast(SetName, name), out, Console(), source=source)


_MARK = ".getting"
_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where a data set comes from, for a download by hand."""

    page: str
    archives: tuple[str, ...]
    folder: str
    """Where torchvision looks for the archives, below its root."""
    extracted: str
    """Where it extracts them to, below its root."""


_ORIGINS: dict["SetName", _Origin] = {
    "caltech101": _Origin(
        "https://data.caltech.edu/records/mzrjq-6wc02",
        ("caltech-101.zip",),
        "caltech101",
        "caltech101/101_ObjectCategories",
    ),
    "imagenette": _Origin(
        "https://github.com/fastai/imagenette", ("imagenette2.tgz",), "", "imagenette2"
    ),
    "cifar10": _Origin(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ("cifar-10-python.tar.gz",),
        "",
        "cifar-10-batches-py",
    ),
    "cifar100": _Origin(
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        ("cifar-100-python.tar.gz",),
        "",
        "cifar-100-python",
    ),
    "flowers102": _Origin(
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        "flowers-102",
        "flowers-102/jpg",
    ),
    "pets": _Origin(
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        ("images.tar.gz", "annotations.tar.gz"),
        "oxford-iiit-pet",
        "oxford-iiit-pet/annotations",
    ),
    "voc2007": _Origin(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/",
        ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"),
        "",
        "VOCdevkit/VOC2007/ImageSets/Main/test.txt",
    ),
    "voc2012": _Origin(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        ("VOCtrainval_11-May-2012.tar",),
        "",
        "VOCdevkit/VOC2012/ImageSets/Main/val.txt",
    ),
}


def get_data(
    name: "SetName", out: Path, console: Console, *, source: Path | None = None
) -> dict[str, "Manifest"]:
    """Make the shards OUT/train and OUT/test of a data set, or OUT if it has no official split.

    Existing shards are kept. Downloads go to OUT-files beside `out`, which may be removed
    afterwards.

    Args:
        name: The data set.
        out: Folder of the shards.
        console: Shows progress and a last line.
        source: What torchvision calls the root of the data set; nothing is downloaded then.

    Returns:
        Manifests by side: "train" and "test", or "all".

    Raises:
        ConfigError: The set cannot be downloaded, `source` does not hold it, or `out` holds
            something else.
    """
    from training.transfer.images.known_sets import read_known

    done = _finished(name, out)
    if done is None:
        root = source or out.with_name(f"{out.name}-files")
        if source is None:
            _download(name, root, console)
        done = _pack(name, read_known(name, root), out, console)
    counts = {side: f"{made.num_samples} {side}" for side, made in done.items()}
    summary = " and ".join(counts.values()).removesuffix(" all")
    classes = next(iter(done.values())).classes or ()
    say(console, f"{name}: {summary} images of {len(classes)} classes in {out}")
    return done


def _finished(name: "SetName", out: Path) -> dict[str, "Manifest"] | None:
    """Read what an earlier call completed; refuse the folder of another set."""
    from pipeline.shards.manifest import FILE_NAME, read_manifest

    folders = {"all": out, "train": out / "train", "test": out / "test"}
    there = {s: read_manifest(p) for s, p in folders.items() if (p / FILE_NAME).exists()}
    for side, made in there.items():
        found = made.config.get("data_set")
        if found != name:
            raise ConfigError(
                f"out (={out}) holds {'other shards' if found is None else found} at "
                f"{folders[side]}; choose another folder."
            )
    return there if there.keys() in ({"all"}, {"train", "test"}) else None


def _pack(name: "SetName", found: "KnownSet", out: Path, console: Console) -> dict[str, "Manifest"]:
    from pipeline.ingest.labelled import pack

    made = {}
    for note in found.notes:
        say(console, f"note: {note}")
    for side, images in found.sides.items():
        folder = out if side == "all" else out / side
        about = {"data_set": name, "side": side}
        with bar(console, f"pack {side}", counts=True) as line:
            made[side] = pack(_shown(images, line), folder, found.classes, about=about)
        for reason, count in made[side].ledger.quarantined.items():
            text = f"note: {count} images cannot be used: {reason} (see {folder}/ledger.jsonl)"
            say(console, text)
    return made


def _shown(images: "Side", line: Bar) -> Iterator["Packed"]:
    for done, image in enumerate(images.read(), 1):
        yield image
        line.update(done, images.num_images)


def _download(name: "SetName", root: Path, console: Console) -> None:
    """Let torchvision download and extract a data set, unless it is there already.

    A mark shows that extraction has begun: what a killed call left is extracted again, since
    torchvision treats an existing folder as complete.
    """
    origin, mark = _ORIGINS[name], root / _MARK
    extracted = root / origin.extracted
    if mark.exists():
        _remove(extracted)
    elif extracted.exists():
        return
    root.mkdir(parents=True, exist_ok=True)
    mark.touch()
    say(console, f"{name}: downloading to {root}")
    try:
        with _patience():
            _ask_torchvision(name, root)
    except (OSError, RuntimeError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        _remove(extracted)
        mark.unlink()
        folder = root / origin.folder
        cause = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, HTTPError):
            error.close()  # It holds the connection.
        raise ConfigError(
            f"{name} cannot be downloaded ({cause}); get {' and '.join(origin.archives)} from "
            f"{origin.page} by hand, put the files into {folder}, and run the same command "
            "again, or give the folder of an unpacked copy with --source."
        ) from None
    mark.unlink()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _patience() -> Iterator[None]:
    """Make a silent server an error: torchvision would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About how a later Python extracts tars.
            yield
    finally:
        socket.setdefaulttimeout(before)


def _ask_torchvision(name: "SetName", root: Path) -> None:
    from torchvision import datasets

    if name == "voc2007":
        datasets.VOCDetection(root, year="2007", image_set="trainval", download=True)
        datasets.VOCDetection(root, year="2007", image_set="test", download=True)
    elif name == "voc2012":
        datasets.VOCDetection(root, year="2012", image_set="trainval", download=True)
    else:
        kinds = {
            "caltech101": datasets.Caltech101,
            "imagenette": datasets.Imagenette,
            "cifar10": datasets.CIFAR10,
            "cifar100": datasets.CIFAR100,
            "flowers102": datasets.Flowers102,
            "pets": datasets.OxfordIIITPet,
        }
        kinds[name](root, download=True)
