import pytest
import safetensors.torch
import torch
import torchvision
from pydantic import ValidationError
from torchvision.models import VisionTransformer

from pipeline.config import ConfigError
from training.models.trunks import TrunkConfig, build_trunk, require_view
from training.models.vit import positions_of
from training.pretrain import export_trunk

NAMES = ("small", "resnet18", "resnet50", "alexnet", "vit_s16")


def trunk_of(name, seed=0, **changes):
    torch.manual_seed(seed)
    batch_norm = changes.pop("batch_norm", None)
    return build_trunk(TrunkConfig(name=name, batch_norm=batch_norm), **changes)


def empty_vit(px):
    return VisionTransformer(px, 16, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536)


def num_weights(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "classifier"), [("resnet18", "fc"), ("resnet50", "fc"), ("vit_s16", "heads.head")]
)
def test_torchvision_takes_an_exported_trunk_but_for_its_classifier(name, classifier, tmp_path):
    trunk = trunk_of(name, view_px=64).to(memory_format=torch.channels_last).eval()
    export_trunk(trunk, tmp_path / "trunk.safetensors")
    net = empty_vit(64) if name == "vit_s16" else getattr(torchvision.models, name)(weights=None)
    taken = net.load_state_dict(
        safetensors.torch.load_file(tmp_path / "trunk.safetensors"), strict=False
    )
    assert sorted(taken.missing_keys) == [f"{classifier}.bias", f"{classifier}.weight"]
    assert taken.unexpected_keys == []
    # The same network, not only the same names.
    setattr(net, classifier.split(".")[0], torch.nn.Identity())
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(net.eval()(image), trunk(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "width"), [("small", 256), ("resnet18", 512), ("resnet50", 2048)])
def test_a_residual_trunk_has_a_map_for_every_stage_and_the_width_it_says(name, width):
    trunk = trunk_of(name).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        maps = trunk.stages(image)
        assert trunk(image).shape == (2, width) == (2, trunk.width)
        assert torch.allclose(trunk(image), maps[-1].mean(dim=(2, 3)))
    assert len(maps) == len(trunk.stage_names)
    sides = [each.shape[-1] for each in maps]
    assert sides == sorted(sides, reverse=True)
    channels = [each.shape[1] for each in maps]
    assert channels == sorted(channels)
    assert all((each >= 0).all() for each in maps)  # After their ReLU.


@pytest.mark.parametrize(
    ("use", "px", "sides"),
    [
        ("pretext", 64, [27, 13, 6, 6, 6]),  # Rounding up: conv5's pool leaves 3 x 3.
        ("pretext", 75, [33, 16, 8, 8, 8]),
        ("pretext", 32, [11, 5, 2, 2, 2]),
        ("transfer", 227, [55, 27, 13, 13, 13]),  # As in Krizhevsky et al. 2012.
        ("transfer", 224, [54, 27, 13, 13, 13]),
    ],
)
def test_alexnet_has_the_maps_of_the_paper(use, px, sides):
    trunk = trunk_of("alexnet", use=use).eval()
    with torch.inference_mode():
        maps = trunk.stages(torch.randn(1, 3, px, px))
        features = trunk(torch.randn(2, 3, px, px))
    assert [each.shape[1] for each in maps] == [96, 256, 384, 384, 256]
    assert [each.shape[2] for each in maps] == sides
    assert [each.shape[3] for each in maps] == sides
    assert features.shape == (2, 2304) == (2, trunk.width)


def test_alexnets_features_keep_what_is_where_in_a_tile():
    trunk = trunk_of("alexnet").eval()
    tile = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        last = trunk.stages(tile)[-1]
        pooled = torch.nn.functional.max_pool2d(last, 3, 2, ceil_mode=True)
        assert pooled.shape == (1, 256, 3, 3)
        assert torch.equal(trunk(tile), pooled.flatten(1))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_alexnet_has_as_many_weights_as_its_layers_say(batch_norm):
    layers = [(96, 3, 11, 1), (256, 96, 5, 2), (384, 256, 3, 1), (384, 384, 3, 2), (256, 384, 3, 2)]
    filters = sum(out * inputs // groups * side**2 for out, inputs, side, groups in layers)
    outputs = sum(out for out, *_ in layers)
    trunk = trunk_of("alexnet", batch_norm=batch_norm)
    assert num_weights(trunk) == filters + outputs * (2 if batch_norm else 1)
    assert (filters + outputs) / 1e6 == pytest.approx(2.33, abs=0.005)
    norms = [m for m in trunk.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (5 if batch_norm else 0)
    if not batch_norm:
        # The released network: 0 for conv1 and conv3, 1 for the others; Gaussians of 0.01.
        biases = [trunk.net.get_parameter(f"conv{n}.bias").unique().tolist() for n in range(1, 6)]
        assert biases == [[0], [1], [0], [1], [1]]
        assert trunk.net.conv3.weight.std().item() == pytest.approx(0.01, rel=0.01)


def test_alexnets_batch_norm_is_on_unless_it_is_turned_off():
    assert (
        trunk_of("alexnet").export().keys() == trunk_of("alexnet", batch_norm=True).export().keys()
    )


@pytest.mark.parametrize("batch_norm", [True, False])
def test_alexnets_pretext_weights_serve_the_larger_stride(batch_norm):
    pretext = trunk_of("alexnet", 1, batch_norm=batch_norm).eval()
    large = trunk_of("alexnet", 2, batch_norm=batch_norm, use="transfer").eval()
    large.net.load_state_dict(pretext.export(), strict=True)
    assert (pretext.net.conv1.stride, large.net.conv1.stride) == ((2, 2), (4, 4))
    image = torch.randn(1, 3, 99, 99)
    with torch.inference_mode():
        fine, coarse = pretext.stages(image)[0], large.stages(image)[0]
    assert torch.allclose(fine[:, :, ::2, ::2], coarse, atol=1e-5)


def test_vit_has_as_many_weights_as_its_layers_say():
    D, mlp, patches = 384, 1536, (64 // 16) ** 2
    attention = 4 * (D * D + D)
    block = attention + 2 * (2 * D) + (D * mlp + mlp) + (mlp * D + D)
    stem = 3 * 16 * 16 * D + D + D + (patches + 1) * D  # Patches, class token, positions.
    assert num_weights(trunk_of("vit_s16", view_px=64)) == stem + 12 * block + 2 * D
    assert num_weights(trunk_of("vit_s16", view_px=224)) == pytest.approx(21.7e6, rel=0.002)


@pytest.mark.parametrize("px", [32, 64, 224])
def test_vit_sees_views_of_any_multiple_of_its_patch(px):
    trunk = trunk_of("vit_s16", view_px=64).eval()
    with torch.inference_mode():
        maps = trunk.stages(torch.randn(2, 3, px, px))
        assert trunk(torch.randn(2, 3, px, px)).shape == (2, 384) == (2, trunk.width)
    assert trunk.stage_names == ("block3", "block6", "block9", "block12")
    assert [tuple(each.shape) for each in maps] == [(2, 384, px // 16, px // 16)] * 4


def test_vits_maps_are_in_reading_order():
    # A change in one patch affects its own place of the first map more than any other.
    trunk = trunk_of("vit_s16", view_px=64).eval()
    plain = torch.zeros(1, 3, 64, 64)
    marked = plain.clone()
    marked[:, :, 16:32, 48:] = 3  # Row 1, column 3.
    with torch.inference_mode():
        moved = (trunk.stages(marked)[0] - trunk.stages(plain)[0]).square().sum(dim=1)[0]
    assert divmod(int(moved.argmax()), 4) == (1, 3)


def test_positions_are_left_alone_or_interpolated_place_by_place():
    embedding = torch.randn(1, 17, 6)
    assert positions_of(embedding, (4, 4)) is embedding
    # A ramp from left to right stays one, and the class token's position is never mixed in.
    ramp = torch.arange(4.0).repeat(4, 1).reshape(1, 16, 1)
    wanted = positions_of(torch.cat([torch.full((1, 1, 1), 99.0), ramp], dim=1), (8, 8))
    assert wanted.shape == (1, 65, 1)
    assert wanted[0, 0, 0] == 99
    grid = wanted[0, 1:, 0].view(8, 8)
    assert torch.allclose(grid, grid[:1].expand(8, 8), atol=1e-5)
    assert (grid[0].diff() > 0).all()
    assert grid[0, 3:5].mean() == pytest.approx(1.5)
    tall = positions_of(embedding, (2, 5))
    assert tall.shape == (1, 11, 6)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_reach_every_weight(name):
    trunk = trunk_of(name, view_px=64).train()
    features = trunk(torch.randn(4, 3, 64, 64))
    (features * torch.randn_like(features)).sum().backward()  # A norm fixes the sum of squares.
    for key, parameter in trunk.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_in_memory_changes_nothing(name):
    trunk = trunk_of(name, view_px=64).eval().double()  # Sums of floats depend on the processor.
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        plain = trunk(image)
        trunk.to(memory_format=torch.channels_last)
        last = trunk(image.to(memory_format=torch.channels_last))
    assert torch.allclose(plain, last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_filters_see_colours(name):
    filters = trunk_of(name).first_filters
    assert filters.ndim == 4
    assert filters.shape[1] == 3
    assert filters.shape[2] == filters.shape[3]


def test_stages_are_not_overwritten_by_later_ones():
    trunk = trunk_of("small").eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        first = trunk.stages(image)[0]
        x = trunk.net.relu(trunk.net.bn1(trunk.net.conv1(image)))
    assert torch.equal(first, x)  # ReLU works in place.


@pytest.mark.parametrize("name", ["small", "alexnet", "vit_s16"])
def test_the_same_seed_gives_the_same_trunk(name):
    one, again, other = (trunk_of(name, seed, view_px=32) for seed in (1, 1, 2))
    ours, same = one.export(), again.export()
    assert all(torch.equal(ours[key], same[key]) for key in ours)
    assert not torch.equal(one.first_filters, other.first_filters)


@pytest.mark.parametrize("name", ["small", "alexnet"])
def test_an_export_survives_its_file(name, tmp_path):
    trunk = trunk_of(name).to(memory_format=torch.channels_last)
    export_trunk(trunk, tmp_path / "trunk.safetensors")
    read = safetensors.torch.load_file(tmp_path / "trunk.safetensors")
    ours = trunk.net.state_dict()
    assert read.keys() == ours.keys()
    assert all(torch.equal(read[key], ours[key]) for key in ours)
    assert [path.name for path in tmp_path.iterdir()] == ["trunk.safetensors"]


@pytest.mark.parametrize("name", ["small", "resnet50", "vit_s16"])
def test_a_choice_of_another_architecture_is_refused(name):
    with pytest.raises(
        ValidationError, match=rf"batch_norm \(=True\) is a choice of alexnet .*{name}"
    ):
        TrunkConfig(name=name, batch_norm=True)


@pytest.mark.parametrize(
    ("name", "px", "use", "message"),
    [
        (
            "vit_s16",
            33,
            "pretext",
            "must be a multiple of 16, the side of a patch of trunk.name "
            "(=vit_s16); set it to 32 or 48.",
        ),
        (
            "vit_s16",
            10,
            "transfer",
            "must be a multiple of 16, the side of a patch of trunk.name (=vit_s16); set it to 16.",
        ),
        ("alexnet", 24, "pretext", "must be at least 25: "),
        ("alexnet", 38, "transfer", "must be at least 39: "),
    ],
)
def test_views_that_a_trunk_can_not_see_name_key_and_trunk(name, px, use, message):
    with pytest.raises(ConfigError) as caught:
        require_view(TrunkConfig(name=name), px, key="tile_px", use=use)
    assert str(caught.value).startswith(f"tile_px (={px}) {message}")
    assert f"(={name})" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "px", "use"),
    [
        ("vit_s16", 16, "pretext"),
        ("alexnet", 25, "pretext"),
        ("alexnet", 39, "transfer"),
        ("small", 8, "pretext"),
        ("resnet18", 8, "pretext"),
    ],
)
def test_the_smallest_view_that_is_allowed_can_be_seen(name, px, use):
    require_view(TrunkConfig(name=name), px, key="tile_px", use=use)
    trunk = trunk_of(name, use=use, view_px=px).eval()
    with torch.inference_mode():
        assert trunk(torch.randn(1, 3, px, px)).isfinite().all()
