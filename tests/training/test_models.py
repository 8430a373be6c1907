import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.normalize import normalize
from pipeline.pretext.permutation_set import max_min_hamming_set
from training.models.heads import JigsawHead
from training.models.pretext_model import build_model
from training.models.trunks import TrunkConfig

JIGSAW = JigsawConfig(
    name="jigsaw",
    crop_px=99,
    tile_px=33,
    channel_shift_px=0,
    num_permutations=30,
    puzzles_per_image=3,
)


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
    identity.load_state_dict(model.heads[0].state_dict())
    with torch.inference_mode():
        ((logits, targets),) = model(views, labels)
        assert torch.equal(targets, labels.flatten())
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
        (answer,) = model(views, torch.tensor([[0, 1, 0]]))
    one, other, again = answer.logits
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
def test_every_view_and_channel_has_mean_zero_and_deviation_one(shape, low, spread, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(low, low + spread, (*shape, 3), dtype=np.uint8)
    out = normalize(torch.from_numpy(pixels))
    assert out.dtype == torch.float32
    assert out.shape == (np.prod(shape[:-2]), 3, *shape[-2:])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.mean(dim=(2, 3)).abs().max() < 1e-4
    deviation = out.std(dim=(2, 3))
    assert deviation.min() > 1 - 1e-4
    assert deviation.max() < 1 + 1e-4


def test_brightness_and_contrast_of_a_tile_do_not_show():
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 100, (1, 32, 32, 3))
    plain, bright, strong = (
        normalize(torch.from_numpy(pixels.astype(np.uint8)))
        for pixels in (tile, tile + 90, tile * 2)
    )
    assert torch.allclose(plain, bright, atol=1e-4)
    assert torch.allclose(plain, strong, atol=1e-4)


def test_a_tile_of_one_colour_is_zero_not_infinite():
    assert (normalize(torch.full((2, 9, 16, 16, 3), 200, dtype=torch.uint8)) == 0).all()


def test_faint_noise_is_not_blown_up():
    rng = np.random.default_rng(0)
    sky = torch.from_numpy(rng.integers(200, 202, (1, 32, 32, 3)).astype(np.uint8))
    assert normalize(sky).abs().max() < 0.2
