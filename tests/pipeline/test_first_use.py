import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.shards.index import ShardIndex, complete_index, encode_index, read_index
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import index_shards, run_here

NUM_SAMPLES = 6
BROKEN = 2  # A header that is none: only the images tell.


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


def write_tar(path, images):
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))


def index(tar, out, *, fast):
    options = {"fast": fast, "skip_damaged": False, "on_progress": lambda *_: None}
    (shard,) = index_shards([str(tar)], out, run_here, **options).manifest.shards
    path = out / shard.index
    return path, read_index(path, sha256=shard.index_sha256)


def equal(one: ShardIndex, other: ShardIndex) -> bool:
    return encode_index(one) == encode_index(other)


@pytest.fixture
def images():
    return [picture(number) for number in range(NUM_SAMPLES)]


@pytest.fixture
def tar(tmp_path, images):
    write_tar(tmp_path / "s.tar", images)
    return tmp_path / "s.tar"


@pytest.fixture
def quick(tar, tmp_path):
    """Path and content of a fast index."""
    return index(tar, tmp_path / "quick", fast=True)


def kept(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.used.parquet"))


def test_a_completed_index_is_the_one_a_whole_scan_writes(tar, quick, tmp_path):
    path, bare = quick
    _, whole = index(tar, tmp_path / "whole", fast=False)
    completed = complete_index(bare, memoryview(tar.read_bytes()), path)
    assert equal(completed, whole)
    assert not equal(bare, whole)


def test_an_image_that_is_none_keeps_no_size(tmp_path, images):
    images[BROKEN] = b"<html>404</html>"
    write_tar(tmp_path / "odd.tar", images)
    path, bare = index(tmp_path / "odd.tar", tmp_path / "odd", fast=True)
    completed = complete_index(bare, memoryview((tmp_path / "odd.tar").read_bytes()), path)
    assert np.flatnonzero(completed.widths == 0).tolist() == [BROKEN]
    assert np.flatnonzero(completed.heights == 0).tolist() == [BROKEN]
    assert completed.hashes.all()
    assert completed.span_hashes.all()


def test_it_is_kept_and_the_tar_is_not_read_again(tar, quick):
    path, bare = quick
    completed = complete_index(bare, memoryview(tar.read_bytes()), path)
    (file,) = kept(path)
    assert file.name.startswith(f"{path.stem}.")
    assert equal(complete_index(bare, memoryview(b""), path), completed)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "renamed"])
def test_a_damaged_file_is_made_again(tar, quick, damage):
    path, bare = quick
    buffer = memoryview(tar.read_bytes())
    completed = complete_index(bare, buffer, path)
    (file,) = kept(path)
    data = bytearray(file.read_bytes())
    match damage:
        case "flipped":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "cut":
            file.write_bytes(data[:-1])
        case "empty":
            file.write_bytes(b"")
        case "renamed":
            file.rename(path.with_name(f"{path.stem}.{'0' * 16}.used.parquet"))
    assert equal(complete_index(bare, buffer, path), completed)
    assert bytes(data) == file.read_bytes() or damage in ("flipped", "cut", "empty")
    assert equal(complete_index(bare, memoryview(b""), path), completed)


def test_what_belongs_to_other_rows_is_not_taken(tar, quick):
    path, bare = quick
    buffer = memoryview(tar.read_bytes())
    completed = complete_index(bare, buffer, path)
    labelled = dataclasses.replace(bare, labels=np.arange(NUM_SAMPLES, dtype=np.int32))
    assert complete_index(labelled, buffer, path).labels.tolist() == list(range(NUM_SAMPLES))
    assert equal(complete_index(bare, memoryview(b""), path), completed)  # Both are kept.


@pytest.mark.parametrize("folder", ["/proc", "/nowhere"])
def test_where_nothing_can_be_written_nothing_is_kept(tar, quick, folder):
    path, bare = quick
    buffer = memoryview(tar.read_bytes())
    completed = complete_index(bare, buffer, path)
    assert equal(complete_index(bare, buffer, Path(folder) / "s.parquet"), completed)


COMPLETE = """
import sys
from pathlib import Path
from pipeline.shards.index import complete_index
from pipeline.shards.index import read_index

tar, path, sha256, go = sys.argv[1:]
index = read_index(Path(path), sha256=sha256)
buffer = memoryview(Path(tar).read_bytes())
while not Path(go).exists():
    pass
assert complete_index(index, buffer, Path(path)).widths.all()
"""


@pytest.mark.multiprocess
def test_processes_may_complete_it_at_once(tar, quick, tmp_path):
    path, bare = quick
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    command = [sys.executable, "-c", COMPLETE, tar, path, sha256, tmp_path / "go"]
    processes = [subprocess.Popen(command) for _ in range(4)]
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0] * 4
    assert len(kept(path)) == 1
    assert not list(path.parent.glob(".*"))
    assert complete_index(bare, memoryview(b""), path).widths.all()


def test_a_store_completes_a_fast_index_when_it_first_reads_a_shard(tmp_path, images):
    images[BROKEN] = b"<html>404</html>"
    write_tar(tmp_path / "odd.tar", images)
    path, _ = index(tmp_path / "odd.tar", tmp_path / "odd", fast=True)
    samples = Store(tmp_path / "odd").read(np.arange(NUM_SAMPLES))
    assert list(samples.damaged) == [BROKEN]
    assert [p.tobytes() for p in samples.payloads[:2]] == images[:2]
    assert samples.heights.tolist() == [20, 21, 0, 23, 24, 25]
    assert len(kept(path)) == 1


def test_a_changed_shard_does_not_meet_what_was_kept_of_the_old_one(tar, tmp_path, images):
    out = tmp_path / "out"
    path, bare = index(tar, out, fast=True)
    complete_index(bare, memoryview(tar.read_bytes()), path)
    images[0] = images[0][:-3] + b"\0" + images[0][-2:]  # Of equal size: the headers stay.
    write_tar(tar, images)
    again, _ = index(tar, out, fast=True)
    assert (again, kept(path)) == (path, [])
    assert not Store(out).read(np.arange(NUM_SAMPLES)).damaged


def test_what_is_kept_survives_another_index_of_the_same_shards(tar, tmp_path):
    out = tmp_path / "out"
    path, bare = index(tar, out, fast=True)
    complete_index(bare, memoryview(tar.read_bytes()), path)
    stray = path.with_name(f"other.{'0' * 16}.used.parquet")
    shutil.copy(kept(path)[0], stray)
    index(tar, out, fast=True)
    assert len(kept(path)) == 1
    assert not stray.exists()
