"""Laws for all inputs, and the odd images and photographs of real crawls."""

import io
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_images import JPEG, PNG, encoded, photo
from PIL import Image

from pipeline.bench.machine import memory_mib
from pipeline.dali.decode import decode_rgb, decoded_size
from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import crop_graph
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.gate.judge import judge
from pipeline.ingest.gate.sandbox import Sandbox

DATA = Path(__file__).parents[3] / "shared/data"
ODD, CALTECH = DATA / "odd_images", DATA / "caltech101"
CONFIG = ShardConfig(near_duplicates=False)
WIDE = ShardConfig(near_duplicates=False, min_side=1, max_aspect=120)
SEEDS = [
    JPEG,
    encoded(photo(), progressive=True),
    encoded(photo(), restart_marker_blocks=1),
    encoded(photo().convert("L")),
    encoded(photo().convert("CMYK")),
    PNG,
    encoded(photo(), "WEBP"),
    encoded(photo().quantize(), "GIF"),
    encoded(photo(), "BMP"),
    encoded(photo(), "TIFF", compression="tiff_lzw"),
]


def read_by_pillow(stored):
    with Image.open(io.BytesIO(stored)) as image:
        return np.asarray(image.convert("RGB"))


def shown_by_graph(judged, px=64):
    """Run the graph of the evaluation on what is stored, in batches of 16."""
    batches = (judged[start : start + 16] for start in range(0, len(judged), 16))

    def feed():
        batch = next(batches)
        encoded = [np.frombuffer(one.stored, np.uint8) for one in batch]
        sides = [(0, 0, one.stored_height, one.stored_width) for one in batch]
        return encoded, np.array(sides, np.int32)[:, None], np.zeros((len(batch), 1), np.int32)

    options = GraphOptions(max_batch=16, num_threads=1, device_id=None, prefetch=1)
    graph = crop_graph(feed, options, px=px, num_views=1)
    return itertools.chain.from_iterable(
        graph.run().numpy()[:, 0] for _ in range(-(-len(judged) // 16))
    )


def assert_it_trains(judged):
    pixels = decode_rgb(judged.stored)
    assert pixels is not None
    assert pixels.shape == (judged.stored_height, judged.stored_width, 3)
    stored = np.frombuffer(judged.stored, np.uint8)
    assert decoded_size(stored) == (judged.stored_height, judged.stored_width)
    assert np.abs(pixels.astype(int) - read_by_pillow(judged.stored)).max() <= 1


@settings(max_examples=300, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    keep=st.floats(0, 1),
    is_cut=st.booleans(),
    partial=st.booleans(),
)
@example(seed=JPEG, flips=[], keep=0.9999, is_cut=True, partial=False)
def test_no_damage_raises_and_what_is_accepted_trains(seed, flips, keep, is_cut, partial):
    data = bytearray(seed[: int(keep * len(seed))] if is_cut else seed)
    for place, value in flips if data else []:
        data[min(int(place * len(data)), len(data) - 1)] = value
    config = ShardConfig(near_duplicates=False, max_pixels=2**20, accept_partial=partial)
    judged = judge(bytes(data), config)
    assert (judged.outcome == "accepted") == (judged.reason is None) == bool(judged.stored)
    assert judged == judge(bytes(data), config)
    if judged.outcome == "accepted":
        assert_it_trains(judged)


@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from([seed[:n] for seed in SEEDS for n in (2, 4, 12)]), rest=st.binary())
def test_no_bytes_raise(start, rest):
    assert judge(start + rest, CONFIG).outcome in ("quarantined", "filtered", "accepted")


@pytest.mark.skipif(not ODD.is_dir(), reason="the odd images are not here")
def test_the_odd_images_end_in_a_verdict_and_what_is_accepted_trains():
    accepted, slowest = [], 0.0
    with Sandbox(WIDE) as sandbox:
        sandbox.examine([b""])
        pid = sandbox.pid
        for file in sorted(path for path in ODD.rglob("*") if path.is_file()):
            data, started = file.read_bytes(), time.monotonic()
            (judged,) = sandbox.examine([data])
            slowest = max(slowest, time.monotonic() - started)
            assert judged.reason not in ("decoder_crash", "timeout"), file
            if judged.outcome == "accepted":
                accepted.append(judged)
        assert sandbox.pid == pid  # No death at all.
        peak_mib = memory_mib(pid, "VmHWM")
    assert slowest <= 5
    assert peak_mib <= 1024
    assert len(accepted) > 50
    for judged in accepted:
        assert_it_trains(judged)
    for judged, shown in zip(accepted, shown_by_graph(accepted), strict=True):
        image = Image.fromarray(read_by_pillow(judged.stored))
        expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR))
        assert np.abs(shown.astype(int) - expected).mean() < 2


@pytest.mark.skipif(not CALTECH.is_dir(), reason="Caltech-101 is not here")
def test_photographs_of_a_collection_are_stored_as_they_are():
    files = sorted(path for path in CALTECH.rglob("*") if path.is_file())[::90]
    judged = [judge(file.read_bytes(), CONFIG) for file in files]
    taken = [one for one in judged if one.outcome == "accepted"]
    assert len(taken) >= 0.98 * len(judged)
    assert all(one.as_is == (min(one.width, one.height) <= 512) for one in taken)
    for one in taken[::5]:
        assert_it_trains(one)
