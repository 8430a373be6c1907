import numpy as np
import pytest
import torch

from pipeline.config import ConfigError, parse
from training.models.trunks import TrunkConfig, build_trunk
from training.pretrain import export_trunk
from training.run import RunConfig
from training.transfer.evaluate import open_transfer
from training.transfer.frozen.features import GAP, Pooling, frozen_features

CPU = torch.device("cpu")


def run_of(out, shards, name, view_px):
    raw = {
        "out": out,
        "seed": 0,
        "data": {"manifest": shards},
        "trunk": {"name": name},
        "transfer": {"view_px": view_px, "max_train": 12, "max_test": 4},
    }
    return parse(RunConfig, raw, "config")


@pytest.mark.parametrize(("name", "trained_px"), [("vit_s16", 32), ("alexnet", 64)])
def test_weights_trained_on_small_views_work_on_large_ones(shards, tmp_path, name, trained_px):
    # ViT's positions follow the views it was trained on; AlexNet's first stride is for tiles.
    torch.manual_seed(0)
    saved = build_trunk(TrunkConfig(name=name), view_px=trained_px)
    export_trunk(saved, tmp_path / "trunk.safetensors")
    opened = open_transfer(run_of(tmp_path, shards, name, 64), CPU)
    trunk = opened.trunk("pretrained")
    ours = trunk.build(0).export()
    assert all(torch.equal(value, ours[key]) for key, value in saved.export().items())
    poolings = (GAP, Pooling("map", 2))
    frozen = frozen_features(opened.setting, trunk, 0, poolings, lambda *now: None)
    assert set(frozen.layers) == {
        f"{s}.{kind}" for s in saved.stage_names for kind in ("gap", "map")
    }
    assert all(np.isfinite(rows).all() for layer in frozen.layers for rows in frozen.rows(layer))


@pytest.mark.parametrize(
    ("name", "px", "law"), [("vit_s16", 40, "a multiple"), ("alexnet", 32, "at least 39")]
)
def test_unsupported_view_sizes_are_refused(shards, tmp_path, name, px, law):
    with pytest.raises(ConfigError, match=rf"^transfer.view_px \(={px}\) must be {law}"):
        open_transfer(run_of(tmp_path, shards, name, px), CPU)
