"""Extraction of features against its two halves and a torchvision loop."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset
from typing_extensions import assert_never

from pipeline.bench.contest import Effort, Row, Standing, cpu_ratio, ratio, start, take_turns
from pipeline.bench.worker import Answer, Batches, run
from pipeline.config import ConfigError
from pipeline.dali.graph import GraphOptions
from pipeline.loading.crops import whole_batches
from pipeline.pretext.normalize import normalize
from training.models.trunks import Trunk, TrunkConfig
from training.transfer.config import TransferConfig, TrunkSource
from training.transfer.frozen.features import Rows, extract_features, layer_rows
from training.transfer.frozen.svm import SvmConfig
from training.transfer.images.data import TaskOptions, open_task
from training.transfer.images.pool import SplitRule
from training.transfer.job import Labelled, NamedTrunk, Setting, TransferTask
from training.transfer.trunks import named_trunks

# Shapes: N images, B batch, C channels, H/W map size, D features.

Name = Literal["tessera", "loader", "forward", "torchvision"]
TrunkName = Literal["resnet18", "small"]

TITLES: dict[Name, str] = {
    "tessera": "Tessera: loader, forward pass, pooling",
    "loader": "its loader alone",
    "forward": "its forward pass alone, with pooling",
    "torchvision": "torchvision: DataLoader, Pillow, hooks",
}
SVM = SvmConfig(name="svm")
POOLINGS = SVM.poolings(multi_label=False)
"""Poolings of every stage: averages over all positions, and over 2 x 2."""

_HOUR = 3600.0  # Seconds that all images may take, where a round ends by itself.
_ENDLESS = 2**24
"""Images of an evaluation that no bench sees the end of."""
_KEPT = 4
"""Batches in the memory of the forward pass alone."""
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STEM = ("conv1", "bn1", "relu", "maxpool")
_HOOKS = {"relu": "conv1"}
"""Modules whose output is a stage of another name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractionWork:
    """Views of labelled images into features of all stages of a random trunk."""

    shards: str
    """Labelled shards, with or without a split."""
    folder: str
    """Folder of features and loose files."""
    trunk: TrunkName
    view_px: int
    batch: int
    cores: int
    train_per_class: int
    test_per_class: int
    num_classes: int | None
    """Number of classes used, the first ones; None uses all."""

    def setting(self) -> Setting:
        """Open the images.

        Raises:
            ConfigError: There are no labels, too few images, or several classes an image.
        """
        rule = SplitRule(train_per_class=self.train_per_class, test_per_class=self.test_per_class)
        folder = Path(self.folder)
        options = TaskOptions(rule=rule)
        task = open_task(self.shards, options=options, pretrain=None, folder=folder)
        return Setting(
            task=first_classes(task, self.num_classes),
            device=torch.device("cpu"),
            view_px=self.view_px,
            seeds=(0,),
            batch=self.batch,
            threads=self.cores,
            precision="fp32",
            folder=folder,
        )

    def named_trunk(self) -> NamedTrunk:
        """Return the random trunk, as a transfer makes it."""
        config = TransferConfig(trunks=(TrunkSource(name="random"),), view_px=self.view_px)
        (found,) = named_trunks(config, TrunkConfig(name=self.trunk), Path(self.folder))
        return found

    def net(self) -> Trunk:
        """Build the trunk as a transfer runs it."""
        return self.named_trunk().build(0).to(memory_format=torch.channels_last).eval()


def first_classes(task: TransferTask, num: int | None) -> TransferTask:
    """Exclude all but the first `num` classes that have images, and renumber these.

    Raises:
        ConfigError: Images may show several classes.
    """
    if task.train.is_multi_label:
        raise ConfigError(
            "data says several classes of an image; the bench measures one class an image. Give a "
            "tree with a folder for each class, or shards of one."
        )
    chosen = np.unique(task.train.targets)[:num]

    def cut(side: Labelled) -> Labelled:
        kept = np.isin(side.targets, chosen)
        numbers = np.searchsorted(chosen, side.targets[kept])
        return Labelled(side.store, side.sample_ids[kept], numbers)

    names = tuple(task.classes[k] for k in chosen.tolist())
    return TransferTask(cut(task.train), cut(task.test), names, task.overlap)


def hold(
    work: ExtractionWork, effort: Effort, kept: Path, step: Callable[[str], None]
) -> list[Row]:
    """Measure the contenders in turn; then let the torchvision loop save its features to `kept`.

    Raises:
        ConfigError: A contender failed, for instance on an image that only Pillow rejects.
    """

    def measure(standing: Standing) -> None:
        standing.add(standing.ask({"warm": effort.warm, "seconds": effort.seconds}))
        _require(standing)

    names: tuple[Name, ...] = get_args(Name)
    jobs = [{"name": name, **asdict(work)} for name in names]
    with ExitStack() as stack:
        processes = start(stack, "training.bench.extraction:contend", jobs, Path(work.folder))
        pairs = zip(names, processes, strict=True)
        standings = [Standing(name, TITLES[name], [process]) for name, process in pairs]
        for standing in standings:
            _require(standing)
        for number in range(1, effort.rounds + 1):
            take_turns(standings, f"round {number} of {effort.rounds}", measure, step)
        step("features of the torchvision loop")
        loop = standings[names.index("torchvision")]
        loop.ask({"keep": str(kept)}, patience=_HOUR)
        _require(loop)
    return [{"name": one.name, "title": one.title, **one.speeds()} for one in standings]


def _require(standing: Standing) -> None:
    if standing.failure is not None:
        why = standing.failure.removeprefix("failed: ")
        raise ConfigError(f"data does not go through {standing.title}: {why}")


def bound(rows: Sequence[Row]) -> dict[str, Any]:
    """Compare the extraction with what limits it.

    Loader and forward pass share the cores: together they cannot exceed
    `shared_cores_images_per_s`, the speed of one after the other. Ratios per CPU second are given,
    too: other programs disturb wall-clock times, but not these.
    """
    named = {row["name"]: row for row in rows}
    ours, loader, forward = named["tessera"], named["loader"], named["forward"]
    least = min((loader, forward), key=lambda row: row["images_per_s"])
    halves = zip(loader["rounds"], forward["rounds"], strict=True)
    shared = [1 / (1 / one + 1 / other) for one, other in halves]
    return {
        "extraction_images_per_s": ours["images_per_s"],
        "loader_images_per_s": loader["images_per_s"],
        "forward_images_per_s": forward["images_per_s"],
        "torchvision_images_per_s": named["torchvision"]["images_per_s"],
        "shared_cores_images_per_s": median(shared),
        "bound_by": least["name"],
        "ratio_to_bound": ratio(ours, least),
        "ratio_to_shared_cores": ratio(ours, {"rounds": shared}),
        "ratio_to_torchvision": ratio(ours, named["torchvision"]),
        "ratio_to_bound_per_cpu_s": cpu_ratio(ours, least),
        "ratio_to_torchvision_per_cpu_s": cpu_ratio(ours, named["torchvision"]),
    }


@contextmanager
def contend(name: Name, **work: Any) -> Iterator[Answer]:
    """Be a contender, as a worker.

    {"warm", "seconds"} asks for a stretch of batches, {"keep"} for the features of all images in a
    folder, which only the torchvision loop makes.

    Args:
        name: Name of the contender.
        work: Fields of `ExtractionWork`.
    """
    given = ExtractionWork(**work)
    batches: Batches | None = None

    def answer(command: dict[str, Any]) -> dict[str, Any]:
        nonlocal batches
        if "keep" in command:
            keep_features(given, Path(given.folder) / "files", Path(command["keep"]))
            return {}
        batches = batches or _open_batches(name, given)
        return asdict(run(batches, **command))

    try:
        yield answer
    finally:
        if batches is not None:
            batches.close()


def _open_batches(name: Name, work: ExtractionWork) -> Batches:
    """Yield batches of what a contender makes of the training images, for ever."""
    torch.set_num_threads(work.cores)
    match name:
        case "tessera":
            return _extraction(work)
        case "loader":
            return _views(work)
        case "forward":
            return _forward(work)
        case "torchvision":
            return _loop(work)
        case _:
            assert_never(name)


def _extraction(work: ExtractionWork) -> Batches:
    setting = work.setting()
    images = _for_ever(setting.task.train)
    for rows in extract_features(work.net(), images, setting, POOLINGS, lambda done: None):
        yield next(iter(rows.values()))


def _views(work: ExtractionWork) -> Batches:
    setting = work.setting()
    images = _for_ever(setting.task.train)
    options = GraphOptions(
        max_batch=setting.batch, num_threads=setting.threads, device_id=None, prefetch=2
    )
    for batch in whole_batches(images.store, images.sample_ids, options, px=setting.view_px):
        yield batch.views


def _forward(work: ExtractionWork) -> Batches:
    kept = [normalize(views) for views in islice(_views(work), _KEPT)]
    net = work.net()
    for images in cycle(kept):
        yield next(iter(layer_rows(net, images, POOLINGS, "fp32").values()))


def _for_ever(images: Labelled) -> Labelled:
    ids = np.resize(images.sample_ids, _ENDLESS)
    return Labelled(images.store, ids, np.zeros_like(ids))


# What people write with torchvision alone: loose files, a DataLoader, hooks on a network.


class Pictures(Dataset[Tensor]):
    """Files named by their row, transformed as usual for an evaluation."""

    def __init__(self, folder: Path, px: int) -> None:
        self._folder, self._num = folder, sum(1 for _ in folder.iterdir())
        cut = [T.Resize(px), T.CenterCrop(px), T.ToTensor(), T.Normalize(_MEAN, _DEVIATION)]
        self._see = T.Compose(cut)

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(self._folder / str(row)) as image:
            view: Tensor = self._see(image.convert("RGB"))
        return view


def write_files(task: TransferTask, folder: Path) -> None:
    """Write the images of both sides as loose files, `folder`/SIDE/ROW.

    Raises:
        DamageError: An image in the shards is damaged.
    """
    for side, images in (("train", task.train), ("test", task.test)):
        (folder / side).mkdir(parents=True)
        for row, sample_id in enumerate(images.sample_ids):
            (payload,) = images.store.read(np.array([sample_id])).require_whole().payloads
            (folder / side / str(row)).write_bytes(payload.tobytes())


def _loop(work: ExtractionWork) -> Batches:
    """Yield features of the first layer, (B, D), for ever; all layers are computed."""
    pictures = Pictures(Path(work.folder) / "files" / "train", work.view_px)
    for rows in _features(work, pictures, cycle(range(len(pictures)))):
        yield next(iter(rows.values()))


def keep_features(work: ExtractionWork, files: Path, out: Path) -> None:
    """Run over every image once, and write SIDE.LAYER.npy, float32 (N, D), into a folder."""
    out.mkdir()
    for side in ("train", "test"):
        pictures = Pictures(files / side, work.view_px)
        batches = list(_features(work, pictures, range(len(pictures))))
        for layer in batches[0]:
            np.save(out / f"{side}.{layer}.npy", torch.cat([b[layer] for b in batches]).numpy())


def kept_rows(folder: Path, layer: str) -> tuple[Rows, Rows]:
    """Read the training and test rows of a layer that `keep_features` wrote."""
    train, test = (np.load(folder / f"{side}.{layer}.npy") for side in ("train", "test"))
    return train, test


@torch.inference_mode()
def _features(
    work: ExtractionWork, pictures: Pictures, order: Iterable[int]
) -> Iterator[dict[str, Tensor]]:
    trunk = work.named_trunk().build(0)
    modules = [trunk.net.get_submodule(name) for name in (*_STEM, *trunk.stage_names[1:])]
    net, maps = nn.Sequential(*modules).eval(), dict[str, Tensor]()

    def keep(stage: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _given: Any, map_BCHW: Tensor) -> None:
            maps[stage] = map_BCHW

        return hook

    for name in ("relu", *trunk.stage_names[1:]):
        trunk.net.get_submodule(name).register_forward_hook(keep(_HOOKS.get(name, name)))
    shown = DataLoader(pictures, work.batch, sampler=order, num_workers=work.cores)
    for images in shown:
        net(images)
        yield {
            f"{stage}.{pooling.name}": adaptive_avg_pool2d(map_BCHW, pooling.side).flatten(1)
            for stage, map_BCHW in maps.items()
            for pooling in POOLINGS
        }
