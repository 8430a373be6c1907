import base64
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import parse
from pipeline.dali.graph import GraphOptions
from pipeline.explain.pictures.drawing import seen_tiles
from pipeline.loading.loader import open_loader
from pipeline.loading.mixture import RankInfo
from pipeline.pretext.context import ContextConfig, neighbours
from pipeline.pretext.jigsaw import JigsawConfig, permutations_of
from pipeline.pretext.multitask import tasks_of
from pipeline.pretext.normalize import split_labels, split_views
from pipeline.pretext.rotation import RotationConfig
from training.metrics import MetricsRecord
from training.report.charts import Recorded, curves, several_tasks
from training.report.pictures import puzzles
from training.run import RunConfig, pretraining_of

PRETEXTS = {
    "jigsaw": {"name": "jigsaw", "crop_px": 48, "tile_px": 12},
    "context": {"name": "context", "patch_px": 16, "gap_px": 4, "jitter_px": 1}
    | {"min_pixels": 2000, "max_pixels": 4000},
    "rotation": {"name": "rotation", "crop_px": 48, "mirror_probability": 1.0},
}
PRETEXTS["multitask"] = {"name": "multitask", "tasks": list(PRETEXTS.values())}
PRETEXTS["multitask"]["weights"] = [1, 1, 2]


def run_of(shards, name):
    """A run of a pretext, not yet started."""
    raw = {"out": "x", "seed": 1, "data": {"manifest": str(shards)}, "trunk": {"name": "small"}}
    raw |= {"order": {"global_batch": 64, "num_lanes": 4, "window": 16}, "train": {"epochs": 1}}
    raw |= {"optim": {"name": "sgd", "lr": 0.01}, "pretext": PRETEXTS[name]}
    return pretraining_of(parse(RunConfig, raw, "test"))


@pytest.mark.parametrize("name", PRETEXTS)
def test_puzzles_show_what_training_takes(shards, name):
    run = run_of(shards, name)
    loader = open_loader(
        run.data, run.order, run.pretext, seed=run.seed, rank_info=RankInfo(0, 1), ledger=None
    )
    options = GraphOptions(max_batch=64, num_threads=1, device_id=None, prefetch=1)
    batch = next(loader.batches(options))
    views = split_views(run.pretext, batch.views)
    labels = split_labels(run.pretext, torch.from_numpy(batch.labels))
    found = puzzles(run, 3)
    shown = found.tasks
    assert len(found.pages) == 3
    for task, part, views_B, labels_BL in zip(
        tasks_of(run.pretext), shown, views, labels, strict=True
    ):
        assert (part.name, len(part.puzzles)) == (task.name, 3)
        for row, puzzle in enumerate(part.puzzles):
            seen = seen_tiles(task, views_B[row].numpy())
            for sheet in puzzle.sheets[:2]:
                pixels = _pixels(sheet.picture.uri)
                for place, tile in zip(sheet.places, sheet.tiles, strict=True):
                    top, left, side = (int(v) for v in (place.top, place.left, place.side))
                    cut = pixels[top : top + side, left : left + side, :3]
                    assert (cut == seen[tile]).all()
            assert puzzle.sheets[1].tiles == _asked(task, int(labels_BL[row, 0]))


def _asked(task, label):
    """The tiles of the first question, in its order."""
    match task:
        case JigsawConfig():
            return tuple(permutations_of(task)[label])
        case ContextConfig():
            return tuple(neighbours(task.grid)[label, :2])
        case RotationConfig():
            return (0, 1, 2, 3)


def test_an_arrow_stands_between_the_patches_of_the_pair(shards):
    (part,) = puzzles(run_of(shards, "context"), 4).tasks
    for puzzle in part.puzzles:
        first, second = (puzzle.tiles[tile] for tile in puzzle.sheets[1].tiles)
        assert np.hypot(*np.subtract(puzzle.arrow.tail, first.middle)) < first.side / 2
        assert np.hypot(*np.subtract(puzzle.arrow.tip, second.middle)) < second.side / 2


def test_each_of_several_tasks_has_its_curve(shards):
    pretext = run_of(shards, "multitask").pretext
    records = [
        MetricsRecord(
            n, 0, 0.0, 1.0, 5.0, 0.5, 0.1, 10.0, 0.0, accuracy_of={"jigsaw": 0.2, "context": 0.8}
        )
        for n in (1, 2)
    ]
    ours = Recorded("a", 2, records, pretext)
    charts = {chart.name: chart for chart in curves([ours])}
    assert list(charts)[:4] == ["loss", "accuracy", "accuracy-jigsaw", "accuracy-context"]
    assert "From 80\N{NO-BREAK SPACE}% at step 1" in charts["accuracy-context"].summary
    alone = Recorded("b", 3, [dataclasses.replace(r, accuracy_of={}) for r in records], None)
    both = {chart.name: chart for chart in curves([ours, alone])}
    assert list(both) == list(charts)
    assert [len(both[name].curves) for name in ("loss", "accuracy-jigsaw")] == [2, 1]
    assert charts["loss"].rule is not None
    assert both["loss"].rule is None  # The runs differ in chance level.
    assert several_tasks(records) == ("jigsaw", "context")
    assert several_tasks([dataclasses.replace(records[0], accuracy_of={"jigsaw": 0.2})]) == ()


def _pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
