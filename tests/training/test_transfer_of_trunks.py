import numpy as np
import pytest
import torch

from pipeline.config import ConfigError, parse
from pipeline.shards.store import Store
from training.models.trunks import TrunkConfig, build_trunk
from training.pretrain import export_trunk
from training.run import RunConfig
from training.transfer.config import TransferConfig
from training.transfer.evaluate import transfer
from training.transfer.features import extract_features, load_trunk

CPU = torch.device("cpu")


def config_of(view_px):
    return TransferConfig(view_px=view_px, test_share=0.3, map_side=2, costs=(0.01,))


def test_weights_trained_on_small_views_serve_large_ones(shards, tmp_path):
    # ViT's positions follow the views it was trained on; AlexNet's first stride is for tiles.
    for name, trained_px in (("vit_s16", 32), ("alexnet", 64)):
        config = TrunkConfig(name=name)
        torch.manual_seed(0)
        saved = build_trunk(config, view_px=trained_px)
        path = tmp_path / f"{name}.safetensors"
        export_trunk(saved, path)
        loaded = build_trunk(config, use="transfer", view_px=64)
        load_trunk(loaded, path)
        ours = loaded.export()
        assert all(torch.equal(value, ours[key]) for key, value in saved.export().items())
        features = extract_features(
            loaded, Store(shards), np.arange(2), config_of(64), lambda done: None
        )
        names = {f"{stage}.{kind}" for stage in loaded.stage_names for kind in ("gap", "map")}
        assert set(features) == names
        assert all(np.isfinite(rows).all() for rows in features.values())


@pytest.mark.parametrize(
    ("name", "px", "law"), [("vit_s16", 40, "a multiple"), ("alexnet", 32, "at least 39")]
)
def test_views_that_the_trunk_can_not_see_are_refused(shards, tmp_path, name, px, law):
    raw = {
        "out": tmp_path,
        "seed": 0,
        "data": {"manifest": shards},
        "trunk": {"name": name},
        "transfer": config_of(px).model_dump(),
    }
    with pytest.raises(ConfigError, match=rf"^transfer.view_px \(={px}\) must be {law}"):
        transfer(parse(RunConfig, raw, "config"), CPU, lambda *now: None)
