import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.permutations import max_min_hamming_set
from pipeline.seen import normalize
from training.models.heads import JigsawHead
from training.models.trunks import STAGES, TrunkConfig, build_trunk
from training.pretrain import build_model, export_trunk

JIGSAW = JigsawConfig(
    name="jigsaw", crop_px=99, tile_px=33, num_permutations=30, puzzles_per_image=3
)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_takes_an_exported_trunk_but_for_its_classifier(name, tmp_path):
    torch.manual_seed(0)
    trunk = build_trunk(TrunkConfig(name=name)).to(memory_format=torch.channels_last).eval()
    export_trunk(trunk, tmp_path / "trunk.safetensors")
    net = getattr(torchvision.models, name)(weights=None)
    taken = net.load_state_dict(
        safetensors.torch.load_file(tmp_path / "trunk.safetensors"), strict=False
    )
    assert sorted(taken.missing_keys) == ["fc.bias", "fc.weight"]
    assert taken.unexpected_keys == []
    # The same network, not only the same names.
    net.fc = torch.nn.Identity()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(net.eval()(image), trunk(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "width"), [("small", 256), ("resnet18", 512), ("resnet50", 2048)])
def test_a_trunk_has_a_map_for_every_stage_and_the_width_it_says(name, width):
    torch.manual_seed(0)
    trunk = build_trunk(TrunkConfig(name=name)).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = trunk.stages(image)
        assert trunk(image).shape == (2, width) == (2, trunk.width)
        assert torch.allclose(trunk(image), maps[-1].mean(dim=(2, 3)))
    assert len(maps) == len(STAGES)
    sides = [each.shape[-1] for each in maps]
    assert sides == sorted(sides, reverse=True)
    channels = [each.shape[1] for each in maps]
    assert channels == sorted(channels)
    assert all((each >= 0).all() for each in maps)  # Behind their ReLU.


def test_stages_are_not_overwritten_by_later_ones():
    torch.manual_seed(0)
    trunk = build_trunk(TrunkConfig(name="small")).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        first = trunk.stages(image)[0]
        x = trunk.net.relu(trunk.net.bn1(trunk.net.conv1(image)))
    assert torch.equal(first, x)  # ReLU works in place.


def test_the_same_seed_gives_the_same_trunk():
    trunks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        trunks.append(build_trunk(TrunkConfig(name="small")).export())
    assert all(torch.equal(trunks[0][key], trunks[1][key]) for key in trunks[0])
    assert not torch.equal(trunks[0]["conv1.weight"], trunks[2]["conv1.weight"])


def test_an_export_survives_its_file(tmp_path):
    trunk = build_trunk(TrunkConfig(name="small")).to(memory_format=torch.channels_last)
    export_trunk(trunk, tmp_path / "trunk.safetensors")
    read = safetensors.torch.load_file(tmp_path / "trunk.safetensors")
    ours = trunk.net.state_dict()
    assert read.keys() == ours.keys()
    assert all(torch.equal(read[key], ours[key]) for key in ours)
    assert [path.name for path in tmp_path.iterdir()] == ["trunk.safetensors"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model(JIGSAW, TrunkConfig(name="small"))
    views = torch.randint(0, 256, (4, 9, 33, 33, 3), dtype=torch.uint8)
    with torch.inference_mode():  # Running statistics that are not 0 and 1.
        model.train()(views, torch.zeros(4, 3, dtype=torch.int64))
    return model.eval()


def test_permuted_embeddings_are_embeddings_of_permuted_tiles(model):
    torch.manual_seed(1)
    views = torch.randint(0, 256, (2, 9, 33, 33, 3), dtype=torch.uint8)
    labels = torch.tensor([[0, 7, 29], [7, 1, 12]])
    perms = torch.from_numpy(max_min_hamming_set(9, 30, seed=0))
    identity = JigsawHead(JIGSAW, torch.arange(9).repeat(30, 1), width=256).eval()
    identity.load_state_dict(model.head.state_dict())
    with torch.inference_mode():
        logits = model(views, labels)
        assert logits.shape == (6, 30)
        for b in range(2):
            for p in range(3):
                shuffled = views[b, perms[labels[b, p]]]
                features = model.trunk(normalize(shuffled))[None]
                alone = identity(features, torch.zeros(1, 1, dtype=torch.int64))[0]
                assert torch.allclose(logits[3 * b + p], alone, atol=1e-4)


def test_different_labels_show_the_head_different_puzzles(model):
    torch.manual_seed(1)
    views = torch.randint(0, 256, (1, 9, 33, 33, 3), dtype=torch.uint8)
    with torch.inference_mode():
        one, other, again = model(views, torch.tensor([[0, 1, 0]]))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=1e-3)


def test_permutations_are_no_weights(model):
    assert not [key for key in model.state_dict() if "perms" in key]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(1, 8, 8), (3, 16, 9), (2, 4, 5, 7)]),
    low=st.integers(0, 100),
    spread=st.integers(60, 155),
    seed=st.integers(0, 2**31),
)
def test_every_view_and_channel_has_mean_zero_and_deviation_about_one(shape, low, spread, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(low, low + spread, (*shape, 3), dtype=np.uint8)
    out = normalize(torch.from_numpy(pixels))
    assert out.dtype == torch.float32
    assert out.shape == (np.prod(shape[:-2]), 3, *shape[-2:])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.mean(dim=(2, 3)).abs().max() < 1e-4
    deviation = out.std(dim=(2, 3))
    assert deviation.min() > 0.75
    assert deviation.max() < 1


def test_brightness_and_contrast_of_a_tile_do_not_show():
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 100, (1, 32, 32, 3))
    plain, bright, strong = (
        normalize(torch.from_numpy(pixels.astype(np.uint8)))
        for pixels in (tile, tile + 90, tile * 2)
    )
    assert torch.allclose(plain, bright, atol=1e-4)
    assert torch.allclose(plain, strong, atol=0.15)  # But for the floor under the deviation.


def test_a_tile_of_one_colour_is_zero_not_infinite():
    assert (normalize(torch.full((2, 9, 16, 16, 3), 200, dtype=torch.uint8)) == 0).all()


def test_faint_noise_is_not_blown_up():
    rng = np.random.default_rng(0)
    sky = torch.from_numpy(rng.integers(200, 202, (1, 32, 32, 3)).astype(np.uint8))
    assert normalize(sky).abs().max() < 0.2
