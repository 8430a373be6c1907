import json

import numpy as np
import pytest

from pipeline.config import ConfigError
from pipeline.shards.index import read_index
from pipeline.shards.manifest import Manifest, read_manifest, write_manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import run_here
from pipeline.upkeep.repair import repair
from pipeline.upkeep.verify import verify


def quiet(done, total, note):
    assert done <= total


def check(folder, *, deep=False):
    return verify(str(folder), run_here, deep=deep, on_progress=quiet)


def mend(folder, out):
    return repair(str(folder), out, run_here, on_progress=quiet)


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def forget_sha256(folder):
    """Make the manifest vouch for its indexes alone."""
    raw = json.loads((folder / "manifest.json").read_text())
    raw.pop("fingerprint")
    for shard in raw["shards"]:
        shard["sha256"] = None
    write_manifest(folder, Manifest.model_validate(raw))


def first_index(folder):
    info = read_manifest(folder).shards[0]
    return read_index(folder / info.index, sha256=info.index_sha256)


def payloads(folder):
    store = Store(folder)
    read = store.read(np.arange(store.manifest.num_samples))
    assert not read.damaged
    return dict(zip(store.keys(), [p.tobytes() for p in read.payloads], strict=True)), store


@pytest.mark.parametrize("deep", [False, True])
def test_shards_as_written_have_no_problem(shards, deep):
    found = check(shards, deep=deep)
    assert found.ok
    assert (found.shards, found.samples) == (3, 198)
    assert found.summary() == {"ok": True, "shards": 3, "samples": 198, "problems": []}


def test_every_flipped_bit_is_found_and_named(own_shards):
    """Header, payload, padding and end mark: the spans cover every byte."""
    index, tar = first_index(own_shards), own_shards / "shard-000000.tar"
    size, start = tar.stat().st_size, int(index.starts[5])
    places = [start + 3, start + 150, int(index.offsets[5]) + 40, size - 1]
    rng = np.random.default_rng(0)
    for offset in [*places, *rng.integers(0, size, 12).tolist()]:
        row = int(np.searchsorted(index.starts, offset, side="right")) - 1
        flip(tar, offset)
        (problem,) = check(own_shards).problems
        assert (problem.shard, problem.key) == (tar.name, index.keys[row])
        assert problem.offset == index.starts[row]
        flip(tar, offset)
    assert check(own_shards).ok


@pytest.mark.parametrize("row", [60, 0])
def test_a_cut_shard_names_what_is_gone(own_shards, row):
    index, tar = first_index(own_shards), own_shards / "shard-000000.tar"
    tar.write_bytes(tar.read_bytes()[: int(index.starts[row]) + 100])
    found = check(own_shards).problems
    assert "its manifest says" in found[0].what
    assert [p.key for p in found[1:]] == list(index.keys[row:])


def test_missing_and_extra_files_are_found(own_shards):
    (own_shards / "shard-000001.tar").unlink()
    (own_shards / "stray.tar").write_bytes(b"")
    (own_shards / "shard-000002.parquet").write_bytes(b"PAR1")
    found = {problem.shard: problem.what for problem in check(own_shards).problems}
    assert "cannot be read" in found["shard-000001.tar"]
    assert "does not list it" in found["stray.tar"]
    assert "does not match the hash" in found["shard-000002.tar"]


def test_an_index_of_other_bytes_is_found_though_all_hashes_are_renewed(own_shards, vouch):
    """Whoever renews every hash must still write what the headers say."""
    index, tar = first_index(own_shards), own_shards / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    start = int(index.starts[3])
    data[start : start + 4] = b"zzzz"  # The name of a member; its checksum no longer fits.
    tar.write_bytes(data)
    vouch(own_shards)
    forget_sha256(own_shards)
    found = check(own_shards)
    assert "header checksum is wrong" in found.problems[0].what


def test_deep_finds_an_image_that_only_looks_whole(own_shards, vouch):
    index, tar = first_index(own_shards), own_shards / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    middle = int(index.offsets[7]) + int(index.sizes[7]) // 2
    end = int(index.offsets[7]) + int(index.sizes[7])
    data[middle:end] = bytes(end - middle)
    tar.write_bytes(data)
    vouch(own_shards)
    forget_sha256(own_shards)
    found = [p for p in check(own_shards, deep=True).problems if "refused" in p.what]
    assert [p.key for p in found] == [index.keys[7]]


def test_a_repair_keeps_all_that_is_whole_byte_for_byte(own_shards, shards, tmp_path):
    index = first_index(own_shards)
    last = len(index) - 1
    for row in (0, 5, last):
        flip(own_shards / "shard-000000.tar", int(index.offsets[row]) + 10)
    (own_shards / "shard-000001.tar").unlink()
    (own_shards / "shard-000002.parquet").unlink()  # Its tar is intact: reindexed.
    done = mend(own_shards, tmp_path / "mended")
    before, _ = payloads(shards)
    after, store = payloads(tmp_path / "mended")
    assert after.items() <= before.items()
    lost = {key for _, key in done.lost}
    assert lost == set(before) - set(after)
    assert {index.keys[row] for row in (0, 5, last)} <= lost
    assert done.manifest.ledger.quarantined["damaged"] == len(lost) == 198 - len(after)
    assert done.manifest.ledger.inputs == 198
    assert check(tmp_path / "mended", deep=True).ok
    labels = dict(zip(store.keys(), store.labels().tolist(), strict=True))
    whole = Store(shards)
    expected = dict(zip(whole.keys(), whole.labels().tolist(), strict=True))
    assert labels.items() <= expected.items()
    lines = (tmp_path / "mended" / "ledger.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["reason"] == "damaged" for line in lines) == len(lost)


def test_a_repair_of_whole_shards_changes_nothing(shards, tmp_path):
    done = mend(shards, tmp_path / "mended")
    assert (done.num_mended, done.lost, done.problems) == (0, (), ())
    assert done.manifest.fingerprint == read_manifest(shards).fingerprint


def test_a_repair_of_nothing_says_so(own_shards, tmp_path):
    for path in own_shards.glob("*.tar"):
        path.unlink()
    with pytest.raises(ConfigError, match="0 of 198 samples are intact"):
        mend(own_shards, tmp_path / "mended")


def test_a_repair_writes_into_an_empty_folder_only(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        mend(shards, tmp_path)
