import bz2
import gzip
import io
import json
import lzma
import os
import tarfile

import pytest
import zstandard
from crawl_inputs import JPEG, chunks_of, items_of, pairs, tar_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ingest.sources.chunks import read_chunk
from pipeline.ingest.sources.names import is_unsafe

PACK = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tgz": gzip.compress,
    "tar.bz2": lambda data: bz2.compress(data, 1),  # Blocks of 100 kB.
    "tar.xz": lzma.compress,
    "tar.zst": zstandard.ZstdCompressor().compress,
}
THREE = [("cat/1.jpg", b"one"), ("cat/2.png", b"two" * 300), ("dog/3", b"three")]


@pytest.mark.parametrize("ending", PACK)
def test_every_regular_member_is_an_input(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(PACK[ending](tar_with([("cat", {"type": tarfile.DIRTYPE}), *THREE])))
    items = items_of(path)
    assert pairs(items) == [(f"a.{ending}!{name}", data) for name, data in THREE]
    assert [item.label for item in items] == ["cat", "cat", "dog"]


def test_a_tar_is_what_its_bytes_say_whatever_its_ending(tmp_path):
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_with(THREE)))
    assert [item.data for item in items_of(tmp_path / "a.tar")] == [data for _, data in THREE]


def test_pairs_are_samples_and_what_stands_alone_is_an_input(tmp_path):
    about = {"caption": "a cat", "url": "http://h/1", "width": 7, "nsfw": False, "exif": {"a": 1}}
    members = [
        ("0.jpg", b"a"),
        ("0.json", json.dumps(about).encode()),
        ("0.txt", b"an older caption\n"),
        ("1.jpg", b"b"),
        ("1.cls", b"12"),
        ("1.seg.png", b"mask"),
        ("2.jpg", b"c"),
        ("2.json", json.dumps({"label": "dog", "source": "x/1.jpg"}).encode()),
        ("3.jpg", b"d"),
        ("3.npy", b"e"),
        ("4.json", b"{}"),
        ("5.jpg", b"f"),
        ("5.json", b"no json"),
    ]
    tar_with(members, tmp_path / "a.tar")
    items = items_of(tmp_path / "a.tar")
    assert [item.name.partition("!")[2] for item in items] == [
        *("0.jpg", "1.jpg", "2.jpg", "3.jpg", "3.npy", "4.json", "5.jpg")
    ]
    assert [item.label for item in items] == [None, "12", "dog", None, None, None, None]
    assert items[0].caption == "an older caption"
    assert items[0].metadata == {"url": "http://h/1", "width": "7", "nsfw": "false"}
    assert items[2].metadata == {"source": "x/1.jpg"}


def test_shards_of_our_own_are_sources(tmp_path, shards):
    items = items_of(f"{shards}/*.tar", max_bytes=10**6)
    assert len(items) == 198
    assert {item.label for item in items} == {"bar", "disc", "ring", "wedge"}
    assert all(item.metadata["source"].startswith("crawl/") for item in items)


HOSTILE = [
    ("../x.jpg", b"x"),
    ("a/../../x.jpg", b"x"),
    ("/etc/x.jpg", b"x"),
    ("link.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
    ("hard.jpg", {"type": tarfile.LNKTYPE, "linkname": "good.jpg"}),
    ("device.jpg", {"type": tarfile.CHRTYPE}),
    ("pipe.jpg", {"type": tarfile.FIFOTYPE}),
    ("strange.jpg", {"type": b"Z"}),
    ("sparse.jpg", {"type": tarfile.GNUTYPE_SPARSE}),
]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_hostile_members_are_problems_and_their_neighbours_are_kept(tmp_path, ending):
    members = [("good.jpg", b"g"), *HOSTILE, ("last.jpg", b"l")]
    (tmp_path / f"a.{ending}").write_bytes(PACK[ending](tar_with(members)))
    found = [
        (name.partition("!")[2], what) for name, what in pairs(items_of(tmp_path / f"a.{ending}"))
    ]
    bad = [(name, "bad_record") for name, _ in HOSTILE]
    assert found == [("good.jpg", b"g"), *bad, ("last.jpg", b"l")]
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]  # Nothing was unpacked.


def test_a_sparse_file_of_pax_is_a_problem(tmp_path):
    info = {"pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.realsize": "1" + "0" * 15}}
    tar_with([("s.jpg", info), ("t.jpg", b"t")], tmp_path / "a.tar", format=tarfile.PAX_FORMAT)
    assert pairs(items_of(tmp_path / "a.tar")) == [
        ("a.tar!s.jpg", "bad_record"),
        ("a.tar!t.jpg", b"t"),
    ]


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_gigabyte_costs_no_memory(tmp_path, kind):
    head = tarfile.TarInfo("head")
    head.type, head.size = kind, 2**30
    with (tmp_path / "a.tar").open("wb") as file:  # Zeros that no disk holds.
        file.write(head.tobuf())
        file.seek(2**30, os.SEEK_CUR)
        file.write(tar_with(THREE))
    found = pairs(items_of(tmp_path / "a.tar"))
    assert [what for _, what in found] == ["bad_record", b"two" * 300, b"three"]


def test_a_bomb_of_gzip_is_bounded(tmp_path):
    zeros = tarfile.TarInfo("zeros.jpg")
    zeros.size = 2**29
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(tar_with([("1.jpg", b"one")])[:1024] + zeros.tobuf())
        for _ in range(2**9):
            file.write(bytes(2**20))
    assert pairs(items_of(path)) == [("a.tar.gz!1.jpg", b"one"), ("a.tar.gz!@1024", "bad_record")]


def test_sizes_are_judged_before_anything_is_read(tmp_path):
    tar_with([("0.jpg", b""), ("1.jpg", b"x" * 101), ("2.jpg", b"x" * 100)], tmp_path / "a.tar")
    found = pairs(items_of(tmp_path / "a.tar", max_bytes=100))
    assert [what for _, what in found] == ["empty", "too_big", b"x" * 100]


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_cut_anywhere_keeps_what_is_whole_before(tmp_path, ending):
    members = [(f"{i}.jpg", bytes([65 + i]) * (300 * i)) for i in range(1, 5)]
    whole = tar_with(members, format=tarfile.USTAR_FORMAT)
    ends = [1024, 512 * 5, 512 * 8, 512 * 12]  # Behind the padding of each member.
    path = tmp_path / f"a.{ending}"
    for cut in [*range(512, ends[-1] + 1, 512), *range(100, ends[-1], 700)]:
        path.write_bytes(PACK[ending](whole[:cut]))
        num_whole = sum(end <= cut for end in ends)
        start = ([0, *ends])[num_whole]
        assert pairs(items_of(path)) == [
            *((f"a.{ending}!{name}", data) for name, data in members[:num_whole]),
            (f"a.{ending}!@{start}", "bad_record"),
        ]


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_cut_compressed_tar_keeps_what_came_before(tmp_path, ending):
    members = [(f"{i}.jpg", os.urandom(60_000)) for i in range(10)]
    packed = PACK[ending](tar_with(members))
    (tmp_path / f"a.{ending}").write_bytes(packed[: len(packed) // 2])
    items = items_of(tmp_path / f"a.{ending}", max_bytes=10**6)
    assert [item.data for item in items[:-1]] == [data for _, data in members[: len(items) - 1]]
    assert items[-1].problem == "bad_record"
    assert 3 <= len(items) <= 6


def test_behind_a_damaged_header_the_next_one_is_found(tmp_path):
    data = bytearray(tar_with([(f"{i}.jpg", bytes([65 + i]) * 700) for i in range(4)]))
    data[1536 + 10] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    names = [item.name for item in items_of(tmp_path / "a.tar")]
    assert names == ["a.tar!0.jpg", "a.tar!@1536", "a.tar!2.jpg", "a.tar!3.jpg"]


def test_tars_behind_one_another_are_read_on(tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_with(THREE) + tar_with(THREE))
    assert [name.partition("!")[2] for name, _ in pairs(items_of(tmp_path / "a.tar"))] == [
        *("cat/1.jpg", "cat/2.png", "dog/3", "cat/1.jpg#2", "cat/2.png#2", "dog/3#2")
    ]


@pytest.mark.parametrize("content", [b"<html>" * 500, b"x"])
def test_what_is_no_tar_is_one_problem(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    assert pairs(items_of(tmp_path / "a.tar")) == [("a.tar!@0", "bad_record")]


def test_an_empty_file_is_an_empty_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    assert pairs(items_of(tmp_path / "a.tar")) == [("a.tar!@0", "empty")]


def test_a_tar_that_changed_since_is_a_problem_of_each_part(tmp_path):
    tar_with(THREE, tmp_path / "a.tar")
    chunks = chunks_of(tmp_path / "a.tar", chunk_inputs=2)
    os.utime(tmp_path / "a.tar", (1, 1))
    found = [pairs(read_chunk(chunk, max_bytes=10)) for chunk in chunks]
    assert found == [[("a.tar!@0", "changed")], [(f"a.tar!@{chunks[1].first}", "changed")]]
    assert chunks_of(tmp_path / "a.tar", chunk_inputs=2)[0].id != chunks[0].id


NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), max_size=12).filter(
    lambda name: name.strip(".")
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
ENDINGS = st.sampled_from(["", ".jpg", ".b.jpg", ".json", ".txt", ".cls", "#2"])
MEMBERS = st.lists(
    st.tuples(
        st.tuples(st.sampled_from("ab") | PATHS, ENDINGS)
        .map("".join)
        .filter(lambda name: not is_unsafe(name)),
        st.binary(min_size=1),
    ),
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(MEMBERS, st.integers(1, 6), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_any_cut_gives_the_same_items_in_order(tmp_path, members, chunk_inputs, form):
    data = tar_with([*members, ("z.jpg", JPEG)], tmp_path / "a.tar", format=form)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data, 1))
    whole = items_of(tmp_path / "a.tar")
    assert items_of(tmp_path / "a.tar", chunk_inputs=chunk_inputs) == whole
    packed = items_of(tmp_path / "a.tar.gz")
    assert [item.data for item in packed] == [item.data for item in whole]
    contents = iter([data for _, data in members] + [JPEG])
    assert all(item.data in contents for item in whole)  # In the order of the tar.


def test_parts_are_read_by_bytes_not_by_walking_what_is_before(tmp_path):
    tar_with([(f"{i:03}.jpg", b"x" * 600) for i in range(100)], tmp_path / "a.tar")
    chunks = chunks_of(tmp_path / "a.tar", chunk_inputs=10)
    assert [(chunk.first, chunk.num_inputs) for chunk in chunks] == [
        (15360 * i, 10) for i in range(10)
    ]
    data = io.BytesIO((tmp_path / "a.tar").read_bytes())
    assert data.getvalue()[chunks[5].first :][:7] == b"050.jpg"


def test_members_are_chosen_by_globs(tmp_path):
    tar_with([("a/1.jpg", b"1"), ("a/1.txt", b"note"), ("b/2.jpg", b"2")], tmp_path / "a.tar")
    items = items_of(tmp_path / "a.tar", include=["a/*.jpg"])
    assert [(item.name, item.caption) for item in items] == [("a.tar!a/1.jpg", "note")]
