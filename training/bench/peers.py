"""What people write with torchvision alone: loose files, a DataLoader, hooks on a network."""

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Dataset

from training.bench.work import POOLINGS, SVM, ExtractionWork
from training.transfer.frozen.features import Rows
from training.transfer.job import Labelled, TransferTask

# Shapes: N images, B batch, C channels, H/W map size, D features.


_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STEM = ("conv1", "bn1", "relu", "maxpool")
_HOOKS = {"relu": "conv1"}
"""Modules that give a stage of another name."""


class Pictures(Dataset[Tensor]):
    """Files that are named by their row, as an ImageFolder shows them in an evaluation."""

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
    for side, images in sides_of(task).items():
        (folder / side).mkdir(parents=True)
        for row, sample_id in enumerate(images.sample_ids):
            (payload,) = images.store.read(np.array([sample_id])).require_whole().payloads
            (folder / side / str(row)).write_bytes(payload.tobytes())


def sides_of(task: TransferTask) -> dict[str, Labelled]:
    """Return the sides of a task by their names."""
    return {"train": task.train, "test": task.test}


def endless_loop(work: ExtractionWork, files: Path) -> Iterator[Tensor]:
    """Yield features of the first layer, (B, D), for ever; all layers are made."""
    pictures = Pictures(files / "train", work.view_px)
    for rows in _features(work, pictures, cycle(range(len(pictures)))):
        yield next(iter(rows.values()))


def keep_features(work: ExtractionWork, files: Path, out: Path) -> None:
    """Show every image once, and write SIDE.LAYER.npy, float32 (N, D), into a folder."""
    out.mkdir()
    for side in ("train", "test"):
        pictures = Pictures(files / side, work.view_px)
        batches = list(_features(work, pictures, range(len(pictures))))
        for layer in batches[0]:
            np.save(out / f"{side}.{layer}.npy", torch.cat([b[layer] for b in batches]).numpy())


def rows_of(folder: Path, layer: str) -> tuple[Rows, Rows]:
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


def score_layer(folder: Path, layer: str, task: TransferTask, cores: int) -> float:
    """Choose the cost, fit and test on a layer; mean accuracy of the classes, percent.

    Loss, costs, folds and scaling are those of the job svm. Folds are fitted in threads: liblinear
    runs without Python's lock.

    Args:
        folder: With features of both sides, as `keep_features` writes them.
        layer: Its name.
        task: Classes of the rows.
        cores: Threads.
    """
    train, test = rows_of(folder, layer)
    scaler = StandardScaler().fit(train)
    search = GridSearchCV(
        LinearSVC(loss="squared_hinge", dual="auto"),
        {"C": SVM.costs_for(multi_label=False)},
        cv=StratifiedKFold(SVM.folds, shuffle=True, random_state=0),
        scoring="balanced_accuracy",
    )
    with joblib.parallel_config("threading", n_jobs=cores):
        search.fit(scaler.transform(train), task.train.targets)
    return 100 * float(search.score(scaler.transform(test), task.test.targets))
