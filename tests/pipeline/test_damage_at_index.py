import io
import json
import tarfile

import numpy as np
import pytest
from foreign_shards import tar_bytes
from PIL import Image

from pipeline.shards.damage import DamageError
from pipeline.shards.third_party.indexing import index_shards, run_here

NUM_SAMPLES = 8


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


def pair(number, key=None):
    """An image and its text."""
    key = f"d{number}" if key is None else key
    return [(f"{key}.jpg", picture(number)), (f"{key}.json", b'{"a": 1}')]


PAIRS = [pair(number) for number in range(NUM_SAMPLES)]
MEMBERS = [member for members in PAIRS for member in members]
WHOLE = tar_bytes(MEMBERS)
with tarfile.open(fileobj=io.BytesIO(WHOLE)) as tar:
    HEADERS = [member.offset for member in tar]
    END = tar.offset  # Of the end mark.


def flip(data, position):
    return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]


REFUSED = {
    "cut at a sample boundary": (
        WHOLE[: HEADERS[8]],
        f"at byte {HEADERS[8]}: the tar has no end marker",
    ),
    "cut inside a header": (
        WHOLE[: HEADERS[8] + 200],
        f"at byte {HEADERS[8]}: the tar has no end marker",
    ),
    "cut between jpg and json": (
        WHOLE[: HEADERS[9]],
        f"at byte {HEADERS[9]}: the tar has no end marker",
    ),
    "cut inside a member": (
        WHOLE[: HEADERS[8] + 700],
        f"at byte {HEADERS[8]}: member 'd4.jpg' is truncated",
    ),
    "a flipped bit in a header": (
        flip(WHOLE, HEADERS[6] + 3),
        f"at byte {HEADERS[6]}: the header checksum is wrong",
    ),
    "the end mark is missing": (
        WHOLE[:END],
        f"at byte {END}: the tar has no end marker",
    ),
    "two tars in one file": (
        WHOLE + WHOLE,
        f"at byte {END}: data follows the end marker",
    ),
    "zeros in place of a header": (
        WHOLE[: HEADERS[4]] + bytes(512) + WHOLE[HEADERS[4] + 512 :],
        f"at byte {HEADERS[4]}: data follows the end marker",
    ),
    "all jpg first, then all json": (
        tar_bytes([*MEMBERS[::2], *MEMBERS[1::2]]),
        "key 'd0' occurs twice",
    ),
    "the same key again, adjacent": (
        tar_bytes([*PAIRS[0], *pair(1, key="d0"), *PAIRS[2]]),
        "key 'd0' occurs twice",
    ),
    "the same key again, far apart": (
        tar_bytes([*MEMBERS, *pair(9, key="d2")]),
        "key 'd2' occurs twice",
    ),
    "nothing at all": (b"", "at byte 0: the tar has no end marker"),
    "a text": (b"<html>" * 200, "at byte 0: the size is not a number|checksum is wrong"),
    "compressed": (b"\x1f\x8b\x08" + bytes(2000), "at byte 0: it is compressed"),
}
"""Bytes, and what the message says: what can only be told of the shard as a whole."""

QUARANTINED = {
    "keys with dots": (
        tar_bytes([(f"img.{n}.v1.{end}", picture(n)) for n in range(8) for end in ("jpg", "json")]),
        {},  # One key for all by WebDataset's rule, but names of their own.
        8,
    ),
    "members without an ending": (
        tar_bytes([(f"img{n}", picture(n)) for n in range(8)]),
        {"no_key": 8},
        0,
    ),
    "dot-files": (
        tar_bytes([(f"d{n}/.{end}", picture(n)) for n in range(8) for end in ("jpg", "json")]),
        {"no_key": 16},
        0,
    ),
    "an image cut before it was written": (
        tar_bytes([*PAIRS[0], ("d1.jpg", picture(1)[:-50]), *PAIRS[2]]),
        {"truncated": 1},
        2,
    ),
}
"""Bytes, samples excluded by reason, and samples kept: what harms no other sample."""


def index(inputs, out, **options):
    options = {"fast": False, "skip_damaged": False, **options}
    texts = [str(path) for path in inputs]
    return index_shards(texts, out, run_here, on_progress=lambda *_: None, **options)


@pytest.fixture
def good(tmp_path):
    """An intact shard beside the damaged ones."""
    path = tmp_path / "good.tar"
    path.write_bytes(WHOLE)
    return path


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("damage", sorted(REFUSED))
def test_a_damaged_shard_is_refused_and_named(good, tmp_path, damage, fast):
    bad, (content, message) = tmp_path / "bad.tar", REFUSED[damage]
    bad.write_bytes(content)
    with pytest.raises(DamageError, match=message) as caught:
        index([bad, good], tmp_path / "out", fast=fast)
    assert f"1 of 2 shards are damaged: shard (={bad}) is damaged at byte " in str(caught.value)
    assert "--skip-damaged" in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()
    assert not (tmp_path / "out/ledger.jsonl").exists()


@pytest.mark.parametrize("damage", sorted(REFUSED))
def test_the_others_are_indexed_where_that_is_asked_for(good, tmp_path, damage):
    bad, (content, message) = tmp_path / "bad.tar", REFUSED[damage]
    bad.write_bytes(content)
    made = index([bad, good], tmp_path / "out", skip_damaged=True)
    assert made.num_damaged == 1
    assert [shard.name for shard in made.manifest.shards] == [str(good)]
    assert made.manifest.ledger.accepted == made.manifest.ledger.inputs == NUM_SAMPLES
    (row,) = map(json.loads, (tmp_path / "out/ledger.jsonl").read_text().splitlines())
    assert (row["path"], row["verdict"]) == (str(bad), "damaged")
    assert any(part in row["reason"] for part in message.split("|"))


@pytest.mark.parametrize("damage", sorted(QUARANTINED))
def test_a_damaged_sample_is_left_out_and_counted(good, tmp_path, damage):
    odd, (content, reasons, kept) = tmp_path / "odd.tar", QUARANTINED[damage]
    odd.write_bytes(content)
    ledger = index([odd, good], tmp_path / "out").manifest.ledger
    assert ledger.quarantined == reasons
    assert ledger.accepted == kept + NUM_SAMPLES
    assert ledger.inputs == ledger.accepted + sum(reasons.values())
    rows = list(map(json.loads, (tmp_path / "out/ledger.jsonl").read_text().splitlines()))
    assert len(rows) == sum(reasons.values())


def test_all_damaged_shards_are_named_and_the_others_examined(good, tmp_path):
    bad = {name: tmp_path / f"{number}.tar" for number, name in enumerate(sorted(REFUSED))}
    for name, path in bad.items():
        path.write_bytes(REFUSED[name][0])
    with pytest.raises(DamageError) as caught:
        index([*bad.values(), good], tmp_path / "out")
    for path in bad.values():
        assert f"shard (={path}) is damaged at byte " in str(caught.value)
    assert str(good) not in str(caught.value)
    for path in bad.values():
        path.write_bytes(WHOLE)
    assert index([*bad.values(), good], tmp_path / "out").num_scanned == len(bad)


@pytest.mark.parametrize("fast", [False, True])
def test_a_flip_in_any_header_names_the_header(good, tmp_path, fast):
    rng = np.random.default_rng(0)
    for position in rng.choice(512, 40, replace=False).tolist():
        header = int(rng.choice(HEADERS))
        good.write_bytes(flip(WHOLE, header + position))
        with pytest.raises(DamageError, match=f"at byte {header}: "):
            index([good], tmp_path / "out", fast=fast)
