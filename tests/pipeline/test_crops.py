import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as transforms
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.dali import tiles
from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import native_tiles
from pipeline.loading.crops import (
    CropConfig,
    SampleGroup,
    central_cropping,
    crop_batches,
    even_parts,
    random_cropping,
    random_rectangles,
    shuffled,
    ten_cropping,
    whole_batches,
)
from pipeline.pretext.draws import Draws
from pipeline.reference import crop_view
from pipeline.shards.damage import DamageError
from pipeline.shards.store import Store

PX = 40
OPTIONS = GraphOptions(max_batch=16, num_threads=1, device_id=None, prefetch=1)


def column(*values):
    return np.array(values, np.int32)[:, None]


def drawn(seed, *shape):
    return np.random.default_rng(seed).random((*shape, 10, 4))


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    areas=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    ratio=st.floats(1, 3),
    seed=st.integers(0, 2**31),
)
def test_every_rectangle_lies_inside_its_image(height, width, areas, ratio, seed):
    config = CropConfig(min_area=min(areas), max_area=max(areas), max_ratio=ratio)
    crops = random_rectangles(config, column(height), column(width), drawn(seed, 1, 5))
    top, left, down, across = np.moveaxis(crops, -1, 0)
    assert crops.shape == (1, 5, 4)
    assert min(top.min(), left.min()) >= 0
    assert min(down.min(), across.min()) >= 1
    assert (top + down).max() <= height
    assert (left + across).max() <= width


@settings(max_examples=100, deadline=None)
@given(height=st.integers(200, 900), width=st.integers(200, 900), seed=st.integers(0, 2**31))
def test_areas_and_shapes_stay_in_their_ranges(height, width, seed):
    config = CropConfig(min_area=0.1, max_area=0.5, max_ratio=1.5)
    crops = random_rectangles(config, column(height), column(width), drawn(seed, 1, 50))
    down, across = crops[0, :, 2].astype(float), crops[0, :, 3].astype(float)
    fits = (down < height) & (across < width)  # Else the spare may have been taken.
    share = (down * across / height / width)[fits]
    assert (np.abs(share - 0.3) < 0.2 + 0.02).all()
    assert (np.abs(np.log(across / down)) < np.log(1.5) + 0.02).all()


def test_crops_are_spread_as_torchvision_spreads_them():
    config = CropConfig()
    ours = random_rectangles(config, column(375), column(500), drawn(0, 1, 4000))[0]
    image = torch.empty(3, 375, 500)
    law = transforms.RandomResizedCrop(64)
    torch.manual_seed(0)
    names = ("top", "left", "height", "width")
    drawn_by = [law.make_params([image]) for _ in range(4000)]
    theirs = np.array([[found[name] for name in names] for found in drawn_by])
    for column_of in range(4):
        levels = np.linspace(0.05, 0.95, 10)
        one, other = (np.quantile(rows[:, column_of], levels) for rows in (ours, theirs))
        assert one == pytest.approx(other, abs=15), names[column_of]


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((100, 1000), (100, 133)),  # A panorama: no drawn shape holds half of its area.
        ((1000, 90), (120, 90)),
        ((1, 1), (1, 1)),
    ],
)
def test_where_nothing_fits_the_largest_central_one_is_taken(size, shape):
    config = CropConfig(min_area=0.5)
    crops = random_rectangles(config, column(size[0]), column(size[1]), drawn(0, 1, 3))[0]
    assert {tuple(crop[2:]) for crop in crops.tolist()} == {shape}
    (place,) = {tuple(crop[:2]) for crop in crops.tolist()}
    assert place == tuple((whole - part) // 2 for whole, part in zip(size, shape, strict=True))


def test_ten_crops_are_corners_and_middle_and_their_mirror_images():
    plan = ten_cropping(0.5).plan(np.array([100]), np.array([200]), Draws(0, 0, np.array([0])))
    places = [(0, 0), (0, 150), (50, 0), (50, 150), (25, 75)]
    assert [tuple(crop) for crop in plan.crops[0].tolist()] == [(*p, 50, 50) for p in places] * 2
    assert plan.mirrored.tolist() == [[0] * 5 + [1] * 5]


def run(store, ids, cropping, *, seed=3, epoch=2, batch=16):
    parts = [
        SampleGroup(epoch, k, ids[n : n + batch], np.arange(n, min(n + batch, len(ids))))
        for k, n in enumerate(range(0, len(ids), batch))
    ]
    return list(crop_batches(store, parts, cropping, OPTIONS, px=PX, seed=seed))


def views_of(*args, **kwargs):
    return torch.cat([batch.views for batch in run(*args, **kwargs)]).numpy()


def expected(store, ids, cropping, *, seed=3, epoch=2):
    samples = store.read(ids)
    plan = cropping.plan(samples.heights, samples.widths, Draws(seed, epoch, ids))
    views = np.empty((len(ids), cropping.num_views, PX, PX, 3), np.uint8)
    for b, payload in enumerate(samples.payloads):
        for v in range(cropping.num_views):
            view = crop_view(payload.tobytes(), plan.crops[b, v], PX)
            views[b, v] = view[:, ::-1] if plan.mirrored[b, v] else view
    return views, plan


CROPPINGS = [
    random_cropping(CropConfig(), num_views=1, name="train"),
    random_cropping(CropConfig(), num_views=3, name="test"),
    ten_cropping(0.8),
    central_cropping(),
]


@pytest.mark.parametrize("cut", ["compiled", "native"])
@pytest.mark.parametrize("cropping", CROPPINGS, ids=["one", "three", "ten", "central"])
def test_views_are_those_of_the_reference(shards, cropping, cut, monkeypatch):
    if cut == "native":  # The operators that a GPU takes, on the CPU.
        monkeypatch.setattr(tiles, "compiled_tiles", native_tiles)
    store, ids = Store(shards), np.arange(20, 40)
    wanted, plan = expected(store, ids, cropping)
    views = views_of(store, ids, cropping)
    assert views.shape == wanted.shape
    difference = np.abs(views.astype(int) - wanted)
    assert difference.max() <= 2
    assert difference.mean() < 0.25
    assert cropping.num_views == 1 or 0 < plan.mirrored.mean() < 1


def test_a_central_view_is_that_of_an_evaluation(shards):
    store, ids = Store(shards), np.arange(16)
    (batch,) = whole_batches(store, ids, OPTIONS, px=PX)
    assert np.array_equal(views_of(store, ids, central_cropping())[:, 0], batch.views.numpy())


def test_views_follow_seed_epoch_and_sample_and_not_the_batch(shards):
    store, ids, cropping = Store(shards), np.array([7, 90, 3, 11, 150]), CROPPINGS[1]
    views = views_of(store, ids, cropping)
    backwards = views_of(store, ids[::-1].copy(), cropping, batch=2)
    assert np.array_equal(views, backwards[::-1])
    for change in ({"seed": 4}, {"epoch": 3}):
        assert not np.array_equal(views, views_of(store, ids, cropping, **change))


def test_labels_are_handed_through_in_order(shards):
    batches = run(Store(shards), np.arange(40), CROPPINGS[0])
    assert np.concatenate([batch.labels for batch in batches]).tolist() == list(range(40))
    assert [(batch.step, len(batch.views)) for batch in batches] == [(0, 16), (1, 16), (2, 8)]


def test_damage_stops_with_the_name_of_the_sample(own_shards):
    store = Store(own_shards)
    tar = own_shards / store.manifest.shards[0].name
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 255
    tar.write_bytes(data)
    with pytest.raises(DamageError, match="do not match their hash"):
        run(store, np.arange(70), CROPPINGS[0])


def test_what_does_not_decode_is_named(own_shards, vouch):
    store = Store(own_shards)
    tar = own_shards / store.manifest.shards[0].name
    data = bytearray(tar.read_bytes())
    image = store.read(np.array([5])).payloads[0].tobytes()
    start = data.find(image)
    data[start : start + 40] = bytes(40)
    tar.write_bytes(data)
    vouch(own_shards)
    with pytest.raises(DamageError, match="does not decode"):
        run(Store(own_shards), np.arange(8), CROPPINGS[0])


@settings(max_examples=100, deadline=None)
@given(num=st.integers(0, 300), most=st.integers(1, 70))
def test_parts_cover_all_rows_and_are_of_one_size(num, most):
    parts = even_parts(num, most)
    assert [row for part in parts for row in range(num)[part]] == list(range(num))
    sizes = [part.stop - part.start for part in parts]
    assert len(sizes) == -(-num // most)
    assert not sizes or (max(sizes) <= most and max(sizes) - min(sizes) <= 1)


@settings(max_examples=50, deadline=None)
@given(num=st.integers(2, 200), seed=st.integers(0, 1000), epoch=st.integers(0, 1000))
def test_an_epoch_is_an_order_of_the_samples_however_they_are_given(num, seed, epoch):
    ids = np.random.default_rng(num).choice(10_000, num, replace=False)
    rows = shuffled(ids, seed=seed, epoch=epoch)
    assert sorted(rows.tolist()) == list(range(num))
    again = ids[::-1].copy()
    assert np.array_equal(ids[rows], again[shuffled(again, seed=seed, epoch=epoch)])


def test_epochs_and_seeds_have_orders_of_their_own():
    ids = np.arange(100)
    orders = {tuple(shuffled(ids, seed=s, epoch=e).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_areas_out_of_order_are_refused():
    with pytest.raises(ValidationError, match=r"min_area \(=0.5\) exceeds max_area \(=0.2\)"):
        CropConfig(min_area=0.5, max_area=0.2)
