import io
import time
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.bench import loader_measures
from pipeline.bench.inputs import prepare
from pipeline.bench.loader_measures import cuda, images_of
from pipeline.bench.repeated import shrink, write_repeated
from pipeline.bench.work import LoaderWork, graph_options, make_loader
from pipeline.bench.worker import choose, run
from pipeline.shards.store import Store

BATCH = 16


@pytest.fixture(scope="module")
def prepared(shards, tmp_path_factory):
    """A folder with `shards` and `files` of 48 images of the session's 198."""
    folder = tmp_path_factory.mktemp("bench")
    prepare(shards, folder, most=48, least=BATCH, cores=1)
    return folder


def endless(delay):
    while True:
        time.sleep(delay)
        yield range(BATCH)


def broken():
    raise RuntimeError("no such setting here")
    yield


def test_the_fastest_setting_that_runs_is_chosen():
    settings = {"slow": lambda: endless(0.01), "fast": lambda: endless(0.001), "broken": broken}
    assert choose(settings, 0.05)[0] == "fast"
    with pytest.raises(RuntimeError, match="no such setting"):
        choose({"broken": broken, "broken too": broken}, 0.05)


def test_a_stretch_counts_only_what_came_after_the_warm_up():
    taken = []

    def batches():
        for number in range(10):
            taken.append(number)
            yield range(BATCH)

    stretch = run(batches(), warm=0, seconds=0)
    assert (stretch.images, len(taken)) == (BATCH, 4)  # Three to warm up, one measured.


def test_linked_shards_are_read_as_different_ones(prepared, tmp_path):
    images = images_of(prepared / "files")
    write_repeated(images, tmp_path / "out", num_shards=11, samples_per_shard=20)
    store = Store(tmp_path / "out")
    assert store.manifest.num_samples == 220
    payloads = store.read(np.arange(220)).payloads
    expected = [images[row % 40] for row in range(220)]  # 48 images make 2 different shards of 20.
    assert [payload.tobytes() for payload in payloads] == expected
    inodes = {path.stat().st_ino for path in (tmp_path / "out").glob("*.tar")}
    assert len(inodes) == 2
    batches = list(islice(make_loader(tmp_path / "out", BATCH).batches(graph_options(BATCH, 1)), 2))
    assert batches[0].views.shape == (BATCH, 9, 64, 64, 3)


def test_shrunken_images_are_small_and_repeat(prepared):
    small = shrink(images_of(prepared / "files")[:3], 7, 40)
    assert len(small) == 7
    assert small[0] == small[3] != small[1]
    assert min(Image.open(io.BytesIO(small[0])).size) == 40


def test_the_cost_of_python_is_told_apart_from_the_hash(prepared):
    found = loader_measures.python_overhead(prepared / "shards", batch=BATCH, batches=2)
    assert found["python_us"] > 0
    assert found["hash_us"] > 0
    assert found["kib"] > 1


def test_a_resume_in_a_billion_samples_is_measured(monkeypatch):
    monkeypatch.setattr(loader_measures, "_SYNTHETIC_SHARDS", 100)
    monkeypatch.setattr(loader_measures, "_SYNTHETIC_SAMPLES", 10_000_000)
    found = loader_measures.restore(seconds=0.01)
    assert found["samples"] == 10_000_000
    assert found["seconds"] > 0
    assert found["samples_per_cpu_s"] > 0


@pytest.mark.multiprocess
def test_the_first_batch_of_a_fresh_process_is_timed(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(loader_measures, "FIRST_SHARDS", 5)
    monkeypatch.setattr(loader_measures, "FIRST_SAMPLES", 30)
    images = images_of(prepared / "files")
    found = loader_measures.first_batch(images, tmp_path / "out", threads=1, times=1)
    assert found["seconds"] == pytest.approx(found["imports"] + found["own"])
    assert found["own"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_its_rows_say_so(prepared):
    work = LoaderWork(
        shards=prepared / "shards", scratch=prepared, view="tiles", batch=BATCH, cores=1
    )
    assert set(cuda(work).values()) == {"not measured: no CUDA device"}
