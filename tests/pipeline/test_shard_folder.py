import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crawls import CONFIG, build, chunks_of, contents, encoded, job_of, make_crawl
from PIL import Image

from pipeline.config import ConfigError
from pipeline.ingest import folder as room
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.parts import close_sandbox
from pipeline.ingest.stage import UnfinishedError
from pipeline.lock import lock_folder
from pipeline.shards.manifest import Ledger, Manifest, read_manifest, write_manifest

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from pipeline.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left():
    yield
    close_sandbox()


@pytest.fixture
def crawl(tmp_path):
    return make_crawl(tmp_path / "crawl")


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/out."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.multiprocess
def test_a_folder_in_use_names_its_holder_and_is_free_when_that_is_killed(crawl, tmp_path, holder):
    line = rf"out \(=.*out\) is in use by process {holder.pid} on \S+ since 20\S+; wait for it"
    with pytest.raises(ConfigError, match=line):
        build(crawl, tmp_path / "out")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out/.lock").exists()  # It had no time to remove it.
    build(crawl, tmp_path / "out")
    assert not (tmp_path / "out/.lock").exists()


def test_a_lock_that_names_nobody_still_holds(tmp_path):
    with lock_folder(tmp_path / "out"):
        (tmp_path / "out/.lock").write_text("")
        with (
            pytest.raises(ConfigError, match="is in use by another process; wait"),
            lock_folder(tmp_path / "out"),
        ):
            pytest.fail("two hold it")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("resume", "config", "message"),
    [
        (False, CONFIG, "is not empty; use --resume to go on or choose another folder"),
        (True, ShardConfig(), r"was started with samples_per_shard \(=4\), not 1000; use the"),
    ],
)
def test_a_folder_of_another_run_is_refused(crawl, tmp_path, resume, config, message):
    build(crawl, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        build(crawl, tmp_path / "out", config, resume=resume)
    assert contents(tmp_path / "out") == before


def test_a_strange_folder_is_no_resume(crawl, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no shards to resume"):
        build(crawl, tmp_path / "out", resume=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_out_inside_a_source_is_refused(crawl):
    with pytest.raises(ConfigError, match=r"out \(=.*shards\) is inside source"):
        build(crawl, crawl / "shards")
    assert not (crawl / "shards").exists()


def test_out_that_is_a_file_is_refused(crawl, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError, match="is not a writable folder"):
        build(crawl, tmp_path / "out")


def test_out_at_a_url_is_refused(crawl):
    job = job_of(crawl, Path("s3://bucket/shards"))
    with pytest.raises(ConfigError, match="must be a folder on this machine"):
        build(crawl, job.out)


def test_too_little_room_is_told_with_numbers(crawl, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_MARGIN", 1e13)
    with pytest.raises(ConfigError, match=r"has [0-9.]+ GB free, about [0-9.]+ GB are needed"):
        build(crawl, tmp_path / "out")


def test_the_estimate_bounds_large_files_and_counts_archives_once(tmp_path):
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl/small.jpg").write_bytes(encoded(1))
    (tmp_path / "crawl/large.bmp").write_bytes(bytes(10**7))
    chunks = chunks_of(job_of(tmp_path / "crawl", tmp_path / "out"), 1)
    bound = CONFIG.max_side**2 * 2 * 0.75
    assert room.estimate(chunks, CONFIG) == len(encoded(1)) + bound


def test_a_full_disk_is_one_line_and_leaves_no_halves(tmp_path, small_disk, monkeypatch):
    monkeypatch.setattr(room, "_MARGIN", 0.0)
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for seed in range(8):
        (crawl / f"{seed}.png").write_bytes(noise(seed))
    with pytest.raises(OSError, match="No space left") as caught:
        build(crawl, small_disk / "out")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(small_disk / "out")
    assert not list((small_disk / "out").rglob(".*.partial"))
    assert not (small_disk / "out/manifest.json").exists()


def noise(seed):
    """An image of about 300 kB as JPEG."""
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def test_nothing_usable_leaves_nothing(tmp_path):
    (tmp_path / "crawl").mkdir()
    for name, data in (("a.jpg", b""), ("b.jpg", b"text"), ("c.jpg", b"text")):
        (tmp_path / "crawl" / name).write_bytes(data)
    with pytest.raises(ConfigError, match="0 usable of 3 images: 1 empty, 2 not_image"):
        build(tmp_path / "crawl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_failed_shards_are_named_and_the_others_kept(crawl, tmp_path):
    out = tmp_path / "out"

    def run(call, items):
        if hasattr(items[0], "stem"):
            (out / "shard-000002.parquet").mkdir(parents=True)  # Nobody can write a file there.
        for position, item in enumerate(items):
            try:
                yield position, call(item)
            except OSError as error:
                yield position, error

    line = r"1 of 3 shards failed: shard-000002 \(IsADir.*--resume; what is finished is kept"
    with pytest.raises(UnfinishedError, match=line):
        build(crawl, out, run=run)
    assert (out / "shard-000001.json").exists()
    assert not list(out.rglob(".*.partial"))
    (out / "shard-000002.parquet").rmdir()
    assert build(crawl, out, resume=True).num_samples == 10


def test_a_manifest_of_before_loads(tmp_path):
    """Without what was added since: sources, notes, near_duplicate, the shards' ledgers."""
    shard = {"name": "a.tar", "index": "a.parquet", "num_samples": 1, "num_bytes": 9}
    raw = {
        "version": 2,
        "shards": [{**shard, "sha256": "0" * 64, "index_sha256": "1" * 64}],
        "classes": None,
        "ledger": {
            "inputs": 1, "accepted": 1, "quarantined": {}, "filtered": {}, "duplicate": 0,
        },
        "config": {},
    }  # fmt: skip
    old = Manifest.model_validate(raw)
    write_manifest(tmp_path, old)
    assert read_manifest(tmp_path) == old
    assert (old.sources, old.notes, old.shards[0].ledger) == ({}, {}, None)


def test_sources_that_do_not_add_up_are_refused():
    half = Ledger(inputs=1, accepted=1, quarantined={}, filtered={}, duplicate=0)
    shard = {"name": "a.tar", "index": "a.parquet", "num_samples": 2, "num_bytes": 9}
    raw = {
        "version": 2,
        "shards": [{**shard, "sha256": None, "index_sha256": "1" * 64}],
        "classes": None,
        "ledger": Ledger.sum([half, half]),
        "sources": {"a": half, "b": half},
        "config": {},
    }
    assert Manifest.model_validate(raw).num_samples == 2
    with pytest.raises(ValueError, match="do not add up"):
        Manifest.model_validate({**raw, "sources": {"a": half}})


def test_near_duplicates_are_a_part_of_the_duplicates():
    counts = {"inputs": 3, "accepted": 1, "quarantined": {}, "filtered": {}, "duplicate": 2}
    assert Ledger(**counts, near_duplicate=1).describe().endswith("2 duplicate (near 1)")
    with pytest.raises(ValueError, match=r"near_duplicate \(=3\) must be a part of duplicate"):
        Ledger(**counts, near_duplicate=3)
