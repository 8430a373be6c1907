"""Weights as DDP, torch.compile, lightly, MoCo, DINO and timm leave them."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import ConfigError
from training.models.trunks import TrunkConfig, build_trunk
from training.transfer.config import TransferConfig
from training.transfer.trunks import named_trunks
from training.transfer.weights import load_trunk


def trunk_of(seed, name="small"):
    torch.manual_seed(seed)
    return build_trunk(TrunkConfig(name=name), use="transfer", view_px=64)


def below(prefix, weights):
    return {f"{prefix}{key}": value for key, value in weights.items()}


SMALL, OTHER = trunk_of(1).export(), trunk_of(2).export()
HEAD = {"projection_head.layers.0.weight": torch.zeros(8, 256)}
FILES = {
    "DDP": below("module.", SMALL),
    "torch.compile": below("_orig_mod.", SMALL),
    "DDP of torch.compile": below("module._orig_mod.", SMALL),
    "torch.compile of DDP": below("_orig_mod.module.", SMALL),
    "MoCo": {
        "epoch": 3,
        "state_dict": below("module.encoder_q.", SMALL | {"fc.0.weight": torch.zeros(8, 256)})
        | below("module.encoder_k.", OTHER)
        | {"module.queue": torch.zeros(8, 4)},
    },
    "MoCo v3": {"state_dict": below("module.base_encoder.", SMALL)},
    "lightly": {"state_dict": below("backbone.", SMALL) | HEAD},
    "lightly's momentum": below("backbone_momentum.", OTHER) | below("backbone.", SMALL),
    "lightly's DINO": below("student_backbone.", OTHER) | below("teacher_backbone.", SMALL),
    "DINO": {
        "student": below("module.backbone.", OTHER),
        "teacher": below("backbone.", SMALL) | {"head.mlp.0.weight": torch.zeros(4, 256)},
    },
    "DINO, plain": {"student": OTHER, "teacher": SMALL},
    "timm": {"arch": "small", "state_dict": SMALL, "optimizer": {"state": {}}},
    "a wrapper in a wrapper": {"model": {"state_dict": below("model.", SMALL)}},
    "an encoder": below("encoder.", SMALL),
    "half precision": {k: v.half() if v.is_floating_point() else v for k, v in SMALL.items()},
}


@pytest.mark.parametrize("kind", FILES)
def test_the_right_weights_are_found(kind, tmp_path):
    torch.save(FILES[kind], tmp_path / "theirs.pth")
    trunk = trunk_of(3)
    load_trunk(trunk, tmp_path / "theirs.pth")
    for key, value in trunk.export().items():
        if kind == "half precision":
            assert torch.allclose(value.float(), SMALL[key].float(), atol=1e-3), key
        else:
            assert torch.equal(value, SMALL[key]), key


def test_what_real_wrappers_leave_is_read(tmp_path):
    # Not names from memory: the modules of torch themselves.
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = [
            torch.compile(trunk_of(1).net),
            DistributedDataParallel(trunk_of(1).net),
            torch.compile(DistributedDataParallel(trunk_of(1).net)),
            DistributedDataParallel(torch.compile(trunk_of(1).net)),
            nn.Sequential(*trunk_of(1).net.children()),  # lightly's backbone.
        ]
    finally:
        torch.distributed.destroy_process_group()
    for number, module in enumerate(wrapped):
        torch.save(module.state_dict(), tmp_path / f"{number}.pth")
        trunk = trunk_of(3)
        assert load_trunk(trunk, tmp_path / f"{number}.pth")
        assert all(torch.equal(v, SMALL[k]) for k, v in trunk.export().items()), number


def test_lightlys_sequence_of_a_resnet_is_read_by_position(tmp_path):
    theirs = trunk_of(1, "resnet18")
    layers = nn.Sequential(*theirs.net.children())
    torch.save({"state_dict": below("backbone.", layers.state_dict())}, tmp_path / "l.ckpt.pt")
    ours = trunk_of(2, "resnet18")
    (note,) = load_trunk(ours, tmp_path / "l.ckpt.pt")
    assert "below backbone), layers by their position" in note
    assert all(torch.equal(v, theirs.export()[k]) for k, v in ours.export().items())


def test_a_vits_own_encoder_is_no_prefix(tmp_path):
    theirs = trunk_of(1, "vit_s16")
    torch.save(below("module.", theirs.export()), tmp_path / "vit.pth")
    ours = trunk_of(2, "vit_s16")
    load_trunk(ours, tmp_path / "vit.pth")
    assert all(torch.equal(v, theirs.export()[k]) for k, v in ours.export().items())


def test_how_a_file_was_read_is_said_in_the_notes(tmp_path):
    torch.save(FILES["MoCo"], tmp_path / "moco.pth")
    torch.save(SMALL, tmp_path / "plain.pth")
    config = TransferConfig(
        trunks=(
            {"name": "moco", "weights": tmp_path / "moco.pth"},
            {"name": "plain", "weights": tmp_path / "plain.pth"},
        )
    )
    moco, plain = named_trunks(config, TrunkConfig(name="small"), tmp_path)
    others = len(OTHER) + 2
    assert moco.notes == (
        f"trunk moco: {len(SMALL)} weights read (in state_dict, below module.encoder_q); {others} "
        "others left out (module.encoder_k.conv1.weight, module.encoder_k.bn1.weight)",
    )
    assert plain.notes == ()


def test_what_does_not_fit_is_named(tmp_path):
    lost = below("module.", {k: v for k, v in SMALL.items() if k != "layer4.0.bn2.bias"})
    torch.save({"state_dict": lost}, tmp_path / "lost.pth")
    with pytest.raises(ConfigError) as caught:
        load_trunk(trunk_of(3), tmp_path / "lost.pth")
    assert (
        "lost.pth) (in state_dict, below module) are of another architecture: layer4.0.bn2.bias "
        "differs (1 keys in all)" in str(caught.value)
    )
    torch.save(below("their.own.", SMALL), tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match=r"hold none .*but their\.own\.conv1\.weight") as caught:
        load_trunk(trunk_of(3), tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_with_file_and_layer(bad, tmp_path):
    weights = {key: value.clone() for key, value in SMALL.items()}
    weights["layer2.0.bn1.running_var"][3] = bad
    torch.save(below("module.", weights), tmp_path / "bad.pth")
    with pytest.raises(ConfigError) as caught:
        load_trunk(trunk_of(3), tmp_path / "bad.pth")
    assert str(caught.value) == (
        f"weights (={tmp_path / 'bad.pth'}) are not finite: layer2.0.bn1.running_var holds 1 NaN "
        "or infinite values of 64 (1 keys in all); the training that wrote them diverged. Give an "
        "earlier checkpoint."
    )


def test_odd_values_that_are_not_loaded_do_no_harm(tmp_path):
    theirs = below("backbone.", SMALL) | {"loss.running": torch.tensor([float("nan")])}
    torch.save(theirs, tmp_path / "fine.pth")
    trunk = trunk_of(3)
    load_trunk(trunk, tmp_path / "fine.pth")
    assert all(values.isfinite().all() for values in trunk.state_dict().values())
