import dataclasses
import hashlib
import io
import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.ingest import stage
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.parts import close_sandbox
from pipeline.ingest.sources.source_list import parse_sources
from pipeline.shards.index import encode_index, hash_spans, read_index
from pipeline.shards.third_party.indexing import run_here

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As shells start what runs in the background: processes of the tests would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

CLASSES = ("bar", "disc", "ring", "wedge")


@pytest.fixture(scope="session")
def make_shards():
    """A function (images, out, config) that shards a folder as the stage does, without Ray."""

    def make(images, out, config):
        job = ShardRequest(out, parse_sources([str(images)], (), ()), config)
        return stage.make_shards(job, run_here, resume=False, on_progress=lambda progress: None)

    yield make
    close_sandbox()


@pytest.fixture(scope="session")
def shards(tmp_path_factory, make_shards):
    """A folder of 3 shards: 198 JPEGs of 4 classes, 60 to 300 px, some gray, some 4:4:4."""
    crawl = tmp_path_factory.mktemp("sources") / "crawl"
    for number in range(198):
        path = crawl / CLASSES[number % 4] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    out = tmp_path_factory.mktemp("shards")
    made = make_shards(crawl, out, ShardConfig(samples_per_shard=70))
    assert (len(made.shards), made.num_samples) == (3, 198)
    return out


@pytest.fixture
def own_shards(shards, tmp_path):
    """A copy of `shards` that a test may damage."""
    return shutil.copytree(shards, tmp_path / "shards")


@pytest.fixture(scope="session")
def vouch():
    """A function (folder) that makes indexes and manifest anew for tars as they are now."""

    def renew(folder):
        raw = json.loads((folder / "manifest.json").read_text())
        for shard in raw["shards"]:
            index = read_index(folder / shard["index"], sha256=shard["index_sha256"])
            tar = memoryview((folder / shard["name"]).read_bytes())
            spans = hash_spans(tar, index.starts)
            encoded = encode_index(dataclasses.replace(index, span_hashes=spans))
            (folder / shard["index"]).write_bytes(encoded)
            shard["index_sha256"] = hashlib.sha256(encoded).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(raw))

    return renew


def picture(number):
    """Draw one object of class `number % 4` on a cloudy ground."""
    rng = np.random.default_rng(number)
    width, height = (int(side) for side in rng.integers(60, 301, 2))
    ground = Image.fromarray(rng.integers(40, 216, (5, 5, 3), dtype=np.uint8))
    image = ground.resize((width, height), Image.Resampling.BICUBIC)
    side = min(width, height)
    left, top = (int(v) for v in rng.uniform(0.1, 0.3, 2) * side)
    box = (left, top, left + side // 2, top + side // 2)
    colour = tuple(int(v) for v in rng.integers(0, 256, 3))
    draw = ImageDraw.Draw(image)
    match CLASSES[number % 4]:
        case "bar":
            draw.rectangle((left, top, left + side // 2, top + side // 8), fill=colour)
        case "disc":
            draw.ellipse(box, fill=colour)
        case "ring":
            draw.ellipse(box, outline=colour, width=max(2, side // 16))
        case "wedge":
            draw.pieslice(box, 20, 110, fill=colour)
    sink = io.BytesIO()
    gray = number % 9 == 0
    image.convert("L" if gray else "RGB").save(
        sink, "JPEG", quality=85, subsampling=0 if number % 5 == 0 else 2
    )
    return sink.getvalue()
