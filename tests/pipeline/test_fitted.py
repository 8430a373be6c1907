import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.dali.graph import GraphOptions
from pipeline.loading.resized import Fitting, fit, fitted_batches
from pipeline.shards.damage import DamageError

OPTIONS = GraphOptions(max_batch=3, num_threads=1, device_id=None, prefetch=2)
SIZES = [(60, 80), (90, 50), (40, 40), (33, 100), (64, 64)]


@pytest.fixture
def files(tmp_path):
    """Five JPEGs of smooth noise, of different shapes."""
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(SIZES):
        noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = tmp_path / f"{number}.jpg"
        noise.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95)
        paths.append(path)
    return paths


def plans_of(paths, mirrored=(0,) * 5, short_px=32):
    stored = np.array(SIZES, np.int32)
    sizes = fit(stored, short_px=short_px, long_px=48)
    for rows in (np.array([0, 1, 2]), np.array([3, 4])):
        ours = tuple(paths[row] for row in rows)
        flips = np.array(mirrored, np.int32)[rows]
        yield Fitting(rows, ours, stored[rows], sizes[rows], flips)


@pytest.mark.parametrize("short_px", [20, 32])
def test_images_are_those_of_pillow_at_the_top_left_of_zeros(files, short_px):
    mirrored = (0, 1, 0, 1, 0)
    batches = list(fitted_batches(plans_of(files, mirrored, short_px), OPTIONS))
    assert [batch.plan.rows.tolist() for batch in batches] == [[0, 1, 2], [3, 4]]
    for batch in batches:
        assert batch.views.shape[1:3] == tuple(batch.plan.sizes.max(axis=0))
        rows = zip(batch.views.numpy(), batch.plan.sizes.tolist(), batch.plan.rows, strict=True)
        for view, (height, width), row in rows:
            with Image.open(files[row]) as image:
                plain = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
            plain = plain[:, ::-1] if mirrored[row] else plain
            shown = view[:height, :width].astype(int)
            # At the edges Pillow leaves out of the mean what DALI repeats.
            inner = np.abs(shown - plain)[2:-2, 2:-2]
            assert inner.max() <= 3
            assert not view[height:].any()
            assert not view[:, width:].any()


def test_a_file_that_does_not_decode_is_named(files):
    data = files[3].read_bytes()
    files[3].write_bytes(data[:200] + bytes(len(data) - 200))
    batches = fitted_batches(plans_of(files), OPTIONS)
    assert next(batches).plan.rows.tolist() == [0, 1, 2]
    with pytest.raises(DamageError, match=r"3\.jpg: the image does not decode"):
        next(batches)


def test_a_file_of_another_size_than_listed_is_named(files):
    Image.new("RGB", (9, 9)).save(files[1])
    with pytest.raises(DamageError, match=r"1\.jpg: .* not to its size when listed"):
        list(fitted_batches(plans_of(files), OPTIONS))


def test_a_file_that_is_gone_is_named_behind_the_good_batches(files):
    files[4].unlink()
    batches = fitted_batches(plans_of(files), OPTIONS)
    assert next(batches).plan.rows.tolist() == [0, 1, 2]
    with pytest.raises(DamageError, match=r"4\.jpg cannot be read: No such file"):
        next(batches)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(8, 300), st.integers(8, 400))
def test_fitted_sizes_keep_the_shape_within_half_a_pixel(height, width, short_px, long_px):
    (size,) = fit(np.array([[height, width]], np.int32), short_px=short_px, long_px=long_px)
    assert size.max() <= long_px
    assert size.min() <= short_px
    assert size.min() == short_px or size.max() == long_px or size.max() == short_px
    scale = min(short_px / min(height, width), long_px / max(height, width))
    exact = np.array([height, width]) * scale
    assert (np.abs(size - np.maximum(exact, 1)) <= 0.5 + 1e-9).all()
