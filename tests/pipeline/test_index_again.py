import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from foreign_shards import contents, index, picture, read_indexes, tar_of

from pipeline.config import ConfigError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import run_here
from pipeline.shards.third_party.listing import list_shards


def test_only_new_and_changed_shards_are_scanned_again(crawl, tmp_path):
    out = tmp_path / "out"
    first = index([crawl], out)
    before = contents(out)
    assert (first.num_scanned, first.num_members) == (3, 45)
    again = index([crawl], out)
    assert (again.num_scanned, again.num_members) == (0, 0)
    assert contents(out) == before
    tar_of([("x.jpg", picture(77))], crawl / "00001.tar")
    changed = index([crawl], out)
    assert (changed.num_scanned, changed.manifest.num_samples) == (1, 11)
    assert len(list((out / "index").iterdir())) == 6  # What the old one had is gone.
    os.utime(crawl / "00000.tar", ns=(0, 1))  # Equal bytes, but nobody can know.
    assert index([crawl], out).num_scanned == 1


def test_a_new_class_renumbers_the_labels_of_every_shard(crawl, tmp_path):
    last = crawl / "00002.tar"
    aside = last.rename(tmp_path / "aside.tar")
    index([crawl], tmp_path / "out")
    members = [("x.jpg", picture(99)), ("x.json", b'{"label": "aa"}')]
    tar_of(members, crawl / "00003.tar")
    made = index([crawl], tmp_path / "out")
    assert made.num_scanned == 1
    assert made.manifest.classes == ("a", "aa", "b", "c")
    labels = [found.labels.tolist() for found in read_indexes(tmp_path / "out")]
    assert labels == [[0, 2, 0, 2, 0], [2, 3, 2, 3, 2], [1]]
    (crawl / "00003.tar").unlink()  # The class goes as it came.
    aside.rename(last)
    index([crawl], tmp_path / "out")
    index([crawl], tmp_path / "anew")
    assert contents(tmp_path / "out") == contents(tmp_path / "anew")


@pytest.mark.parametrize("damage", ["cut", "gone", "foreign"])
@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_a_damaged_record_or_index_is_made_again(crawl, tmp_path, damage, ending):
    out = tmp_path / "out"
    index([crawl], out)
    before = contents(out)
    victim = sorted((out / "index").glob(f"*.{ending}"))[1]
    match damage:
        case "cut":
            victim.write_bytes(victim.read_bytes()[:-20])
        case "gone":
            victim.unlink()
        case "foreign":
            victim.write_bytes(sorted((out / "index").glob(f"*.{ending}"))[0].read_bytes())
    assert index([crawl], out).num_scanned == 1
    assert contents(out) == before


def test_a_call_stopped_at_any_moment_leaves_what_was_complete_and_goes_on(crawl, tmp_path):
    out = tmp_path / "out"
    index([crawl / "00000.tar"], out)
    old = (out / "manifest.json").read_bytes()

    def stop_after(number):
        def run(call, items):
            for position, result in run_here(call, items):
                if position == number:
                    raise KeyboardInterrupt
                yield position, result

        return run

    for number in range(3):
        with pytest.raises(KeyboardInterrupt):
            index([crawl], out, run=stop_after(number))
        assert (out / "manifest.json").read_bytes() == old
        assert not Store(out).read(np.arange(5)).damaged
    (out / "index/.x.json.1.partial").write_bytes(b"half")  # Of a killed process.
    index([crawl], out)
    index([crawl], tmp_path / "anew")
    assert contents(out) == contents(tmp_path / "anew")


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.shards.third_party.indexing import index_shards, run_here

folder, out, number = sys.argv[1:]
calls = iter(range(int(number)))
fsync = os.fsync
def flush(file):
    if next(calls, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(file)
os.fsync = flush
options = dict(fast=False, skip_damaged=False, on_progress=lambda *_: None)
index_shards([folder], Path(out), run_here, **options)
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize("number", [0, 1, 4, 7, 10, 11])  # Of 12 flushes to the disk.
def test_a_kill_leaves_nothing_half_written(crawl, tmp_path, number):
    out, anew = tmp_path / "out", tmp_path / "anew"
    command = [sys.executable, "-c", KILLED, crawl, out, str(number)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    for path in out.glob("index/*.json"):
        record = json.loads(path.read_text())
        encoded = (out / "index" / record["index"]).read_bytes()
        assert hashlib.sha256(encoded).hexdigest() == record["index_sha256"]
    index([crawl], out)
    index([crawl], anew)
    assert contents(out) == contents(anew)


def test_the_order_of_the_work_does_not_show(crawl, tmp_path):
    def shuffled(call, items):
        results = list(run_here(call, items))
        random.Random(len(items)).shuffle(results)
        yield from results

    index([crawl], tmp_path / "one", run=shuffled)
    index([crawl], tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_shards_of_equal_names_do_not_meet(tmp_path):
    for number in range(2):
        (tmp_path / f"part{number}").mkdir()
        tar_of([("a.jpg", picture(number))], tmp_path / f"part{number}/0.tar")
    made = index([tmp_path / "part0", tmp_path / "part1"], tmp_path / "out").manifest
    assert len({shard.index for shard in made.shards}) == 2
    samples = Store(tmp_path / "out").read(np.arange(2))
    assert [p.tobytes() for p in samples.payloads] == [picture(0), picture(1)]


@pytest.mark.parametrize(
    "content", [{"manifest.json": "{}"}, {"manifest.json": "<"}, {"ledger.jsonl": ""}]
)
def test_a_folder_with_a_manifest_of_its_own_is_not_touched(crawl, tmp_path, content):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in content.items():
        (out / name).write_text(text)
    before = contents(out)
    with pytest.raises(ConfigError, match="manifest or ledger of their own"):
        index([crawl], out)
    assert contents(out) == before


def test_the_index_may_stand_beside_the_shards(crawl):
    index([crawl], crawl)
    assert not Store(crawl).read(np.arange(15)).damaged
    assert index([crawl], crawl).num_scanned == 0


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_shards_at_urls_are_read_where_they_lie(crawl, memory, tmp_path):
    for path in sorted(crawl.iterdir()):
        memory.pipe(f"/set/{path.name}", path.read_bytes())
    by_brace = ["memory://set/{00000..00002}.tar"]
    assert list_shards(by_brace) == [f"memory://set/{n:05}.tar" for n in range(3)]
    for text in ("memory://set/*", "memory://set", "memory://set/*.tar"):
        assert [Path(name).name for name in list_shards([text])] == [
            f"{n:05}.tar" for n in range(3)
        ]
    index([crawl], tmp_path / "local")
    made = index(by_brace, tmp_path / "remote").manifest
    assert made.shards[0].name == "memory://set/00000.tar"
    assert made.fingerprint == read_manifest(tmp_path / "local").fingerprint
    with pytest.raises(ConfigError, match=r"memory://set/9\.tar\) cannot be read: no such file"):
        index(["memory://set/9.tar"], tmp_path / "out")
