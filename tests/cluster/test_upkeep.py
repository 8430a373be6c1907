import json

import numpy as np
import pytest
from command import tessera

from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

pytestmark = pytest.mark.multiprocess


def test_verify_ends_with_what_it_found(own_shards, tmp_path):
    whole = tessera("verify", own_shards, "--deep", "--json", tmp_path / "whole.json")
    assert whole.exit_code == 0, whole.stderr
    assert whole.stdout.splitlines()[-1] == (
        "verify: 3 shards, 198 samples: sizes, hashes, indexes and images are as written"
    )
    assert json.loads((tmp_path / "whole.json").read_text())["ok"] is True
    tar = own_shards / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 4
    tar.write_bytes(data)
    damaged = tessera("verify", own_shards, "--json", tmp_path / "damaged.json")
    assert damaged.exit_code == 1
    assert damaged.stdout.splitlines()[-1] == "verify: 3 shards, 198 samples: 1 problems"
    (problem,) = json.loads((tmp_path / "damaged.json").read_text())["problems"]
    assert problem["shard"] == tar.name
    assert f"shard {tar.name}, key {problem['key']}, byte {problem['offset']}" in damaged.stdout

    mended = tessera("repair", own_shards, "--out", tmp_path / "mended")
    assert mended.exit_code == 0, mended.stderr
    assert "197 samples kept, 1 lost" in mended.stdout
    assert mended.stdout.splitlines()[-1].startswith("198 inputs = 197 accepted + ")


def test_purge_counts_what_it_did(own_shards, tmp_path):
    keys = Store(own_shards).keys()
    (tmp_path / "list").write_text(f"{keys[3]}\n{'0' * 32}\n")
    done = tessera("purge", own_shards, "--hashes", tmp_path / "list")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1] == (
        "purge: 2 hashes asked for: 1 samples purged, 0 were before, 1 hashes match no sample here"
    )
    (tmp_path / "list").write_text("no hash\n")
    refused = tessera("purge", own_shards, "--hashes", tmp_path / "list")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("tessera: hashes (=")


def test_split_and_merge_name_their_parts(shards, tmp_path):
    parts = tessera("split", shards, "train=0.7", "val=0.3", "--out", tmp_path / "parts")
    assert parts.exit_code == 0, parts.stderr
    assert [line.split(":")[0] for line in parts.stdout.splitlines()[-2:]] == ["split", "split"]
    folders = [tmp_path / "parts" / name for name in ("train", "val")]
    merged = tessera("merge", *folders, "--out", tmp_path / "all")
    assert merged.exit_code == 0, merged.stderr
    assert merged.stdout.splitlines()[-1].startswith("198 inputs = 198 accepted")
    assert read_manifest(tmp_path / "all").num_samples == 198
    assert np.isin(Store(tmp_path / "all").keys(), Store(shards).keys()).all()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("train=0.9", "val=0.2"), "= 1.1) must sum to 1"),
        (("train=1.5",), "part (=train=1.5) must be a name"),
        (("../up=0.5", "b=0.5"), "part (=../up=0.5) must be a name"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shards, tmp_path, parts, words):
    done = tessera("split", shards, *parts, "--out", tmp_path / "parts")
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
