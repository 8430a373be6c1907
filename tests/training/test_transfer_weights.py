import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from pipeline.config import ConfigError
from training.models.trunks import TrunkConfig, build_trunk
from training.pretrain import export_trunk
from training.transfer.config import TransferConfig, TrunkSource
from training.transfer.trunks import digest_of, named_trunks
from training.transfer.weights import load_trunk


def trunk_of(name, seed=0):
    torch.manual_seed(seed)
    return build_trunk(TrunkConfig(name=name))


def test_an_exported_trunk_is_loaded_as_it_was(tmp_path):
    saved, loaded = trunk_of("small", 1), trunk_of("small", 2)
    export_trunk(saved, tmp_path / "trunk.safetensors")
    load_trunk(loaded, tmp_path / "trunk.safetensors")
    ours = loaded.export()
    assert all(torch.equal(value, ours[key]) for key, value in saved.export().items())


def test_weights_of_another_architecture_name_the_first_keys(tmp_path):
    export_trunk(trunk_of("resnet18"), tmp_path / "trunk.safetensors")
    with pytest.raises(ConfigError) as caught:
        load_trunk(trunk_of("small"), tmp_path / "trunk.safetensors")
    text = str(caught.value)
    assert (
        "are of another architecture: layer1.1.bn1.bias, layer1.1.bn1.num_batches_tracked" in text
    )
    assert text.endswith("Give the trunk section that they were trained with.")
    assert "\n" not in text


def test_weights_of_another_shape_are_named(tmp_path):
    weights = trunk_of("small").export() | {"conv1.weight": torch.zeros(32, 3, 7, 7)}
    (tmp_path / "trunk.safetensors").write_bytes(safetensors.torch.save(weights))
    with pytest.raises(ConfigError, match=r"architecture: conv1.weight differs \(1 keys in all\)"):
        load_trunk(trunk_of("small"), tmp_path / "trunk.safetensors")


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (type(self.mark).touch, (self.mark,))


def test_files_that_hold_no_tensors_are_refused_and_never_run(tmp_path):
    path, mark = tmp_path / "trunk.safetensors", tmp_path / "was_run"
    export_trunk(trunk_of("small"), path)
    whole = path.read_bytes()
    for broken in (b"", whole[:1000], whole[:-1], b"\xff" * 100, pickle.dumps(Payload(mark))):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"weights \(=.*\) cannot be read") as caught:
            load_trunk(trunk_of("small"), path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ConfigError, match=r"weights \(=.*\) cannot be read"):
        load_trunk(trunk_of("small"), path)
    assert not mark.exists()


def test_torchvision_weights_are_loaded_without_their_classifier(tmp_path):
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18()
    weights = {
        k: v for k, v in theirs.state_dict().items() if "num_batches" not in k
    }  # As in old files.
    for name, saved in (
        ("plain.pth", weights),
        (
            "checkpoint.pt",
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}},
        ),
    ):
        torch.save(saved, tmp_path / name)
        trunk = trunk_of("resnet18")
        load_trunk(trunk, tmp_path / name)
        ours = trunk.export()
        assert all(torch.equal(ours[k], v) for k, v in weights.items() if not k.startswith("fc."))


def test_pickled_code_is_named_and_never_run(tmp_path):
    mark = tmp_path / "was_run"
    for saved in ({"conv1.weight": torch.zeros(1), "other": Payload(mark)}, Payload(mark)):
        torch.save(saved, tmp_path / "trunk.pth")
        with pytest.raises(ConfigError, match=r"holds pickled code, which is not run") as caught:
            load_trunk(trunk_of("small"), tmp_path / "trunk.pth")
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_damaged_torch_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "trunk.pth"
    torch.save(trunk_of("small").export(), path)
    whole = path.read_bytes()
    for broken in (b"", whole[:1000], whole[: len(whole) // 2], b"\xff" * 100, b"PK\x03\x04"):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"weights \(=.*\) cannot be read") as caught:
            load_trunk(trunk_of("small"), path)
        assert "\n" not in str(caught.value)
    for other in ([1, 2], {}, {"a": 3}):
        torch.save(other, path)
        with pytest.raises(ConfigError, match="hold no tensors by name"):
            load_trunk(trunk_of("small"), path)


def names_of(*trunks):
    return TransferConfig(trunks=trunks)


def test_trunks_are_named_and_only_random_ones_follow_the_seed(tmp_path):
    export_trunk(trunk_of("small", 5), tmp_path / "trunk.safetensors")
    config = names_of("random", "pretrained", {"name": "mine", "weights": tmp_path / "mine.pth"})
    torch.save(trunk_of("small", 6).export(), tmp_path / "mine.pth")
    random, pretrained, mine = named_trunks(config, TrunkConfig(name="small"), tmp_path)
    assert [t.name for t in (random, pretrained, mine)] == ["random", "pretrained", "mine"]
    assert pretrained.digest == digest_of(tmp_path / "trunk.safetensors") != mine.digest
    assert [t.draws_weights for t in (random, pretrained, mine)] == [True, False, False]
    first = [trunk.build(1).first_filters for trunk in (random, pretrained, mine)]
    same = [
        torch.equal(t.build(2).first_filters, f)
        for t, f in zip((random, pretrained, mine), first, strict=True)
    ]
    assert same == [False, True, True]
    assert torch.equal(random.build(1).first_filters, first[0])
    norm = next(m for m in random.build(0).modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert norm.running_mean.abs().max() == 0
    assert (norm.running_var == 1).all()


def test_building_a_random_trunk_leaves_the_generator_alone(tmp_path):
    (random,) = named_trunks(names_of("random"), TrunkConfig(name="small"), tmp_path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random.build(9)
    assert torch.equal(torch.rand(3), expected)


def test_a_supervised_trunk_needs_a_location(tmp_path):
    with pytest.raises(ConfigError, match=r"^transfer.supervised is missing"):
        named_trunks(names_of("supervised"), TrunkConfig(name="small"), tmp_path)
    export_trunk(trunk_of("small", 5), tmp_path / "trunk.safetensors")
    for given in (tmp_path, tmp_path / "trunk.safetensors"):
        config = TransferConfig(trunks=("supervised",), supervised=given)
        (trunk,) = named_trunks(config, TrunkConfig(name="small"), tmp_path / "elsewhere")
        assert np.array_equal(
            trunk.build(0).first_filters.detach(), trunk_of("small", 5).first_filters.detach()
        )


@pytest.mark.parametrize(
    ("source", "law"),
    [
        ({"name": "mine"}, "another name with weights"),
        ({"name": "random", "weights": "a.pth"}, "another name with weights"),
        ({"name": "../up", "weights": "a.pth"}, "match pattern"),
    ],
)
def test_trunk_sources_with_too_many_or_few_keys_are_refused(source, law):
    with pytest.raises(ValueError, match=law):
        TrunkSource(**source)
