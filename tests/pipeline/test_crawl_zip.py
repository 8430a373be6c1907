import io
import os
import stat
import zipfile

import pytest
from crawl_inputs import chunks_of, items_of, pairs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.ingest.sources.chunks import read_chunk

THREE = [("cat/1.jpg", b"one"), ("cat/2.png", b"two" * 300), ("3", b"three")]


def zip_with(members, path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_every_regular_member_is_an_input(tmp_path, method):
    path = zip_with([("cat/", b""), *THREE, ("0.jpg", b"")], tmp_path / "a.zip", method)
    for chunk_inputs in (1, 2, 256):
        items = items_of(path, chunk_inputs=chunk_inputs)
        assert pairs(items) == [
            *((f"a.zip!{name}", data) for name, data in THREE),
            ("a.zip!0.jpg", "empty"),
        ]
        assert [item.label for item in items] == ["cat", "cat", None, None]


def test_hostile_members_are_problems(tmp_path):
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    members = [("../x.jpg", b"x"), ("/etc/x.jpg", b"x"), ("a\\..\\x.jpg", b"x"), (link, b"/etc")]
    zip_with([*members, ("big.jpg", b"x" * 101), ("good.jpg", b"g")], tmp_path / "a.zip")
    found = [what for _, what in pairs(items_of(tmp_path / "a.zip", max_bytes=100))]
    assert found == [*["bad_record"] * 4, "too_big", b"g"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_member_of_other_bytes_than_its_crc_is_a_problem(tmp_path):
    path = zip_with(THREE, tmp_path / "a.zip", zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"one", b"own"))
    assert [what for _, what in pairs(items_of(path))] == ["bad_record", b"two" * 300, b"three"]


def test_a_size_that_lies_is_found(tmp_path):
    path = zip_with([("1.jpg", b"x" * 10**6)], tmp_path / "a.zip")
    data = path.read_bytes()
    path.write_bytes(data.replace((10**6).to_bytes(4, "little"), (50).to_bytes(4, "little")))
    assert pairs(items_of(path, max_bytes=100)) == [("a.zip!1.jpg", "bad_record")]


def test_encrypted_members_are_problems(tmp_path):
    path = zip_with(THREE, tmp_path / "a.zip", zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert [what for _, what in pairs(items_of(path))] == ["bad_record", b"two" * 300, b"three"]


def test_a_cut_zip_is_one_problem(tmp_path):
    path = zip_with(THREE, tmp_path / "a.zip")
    whole = path.read_bytes()
    for cut in range(1, len(whole), 7):
        path.write_bytes(whole[:cut])
        assert pairs(items_of(path)) == [("a.zip!@0", "bad_record")]
    path.write_bytes(b"")
    assert pairs(items_of(path)) == [("a.zip!@0", "empty")]


def test_a_zip_that_changed_since_is_a_problem_of_each_part(tmp_path):
    path = zip_with(THREE, tmp_path / "a.zip")
    chunks = chunks_of(path, chunk_inputs=2)
    os.utime(path, (1, 1))
    found = [pairs(read_chunk(chunk, max_bytes=10)) for chunk in chunks]
    assert found == [[("a.zip!@0", "changed")], [("a.zip!@2", "changed")]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "a#2", "b/a", "@1", "c!d"]), st.binary(min_size=1)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_members_come_back_in_order_under_names_of_their_own(tmp_path, members, chunk_inputs):
    sink = io.BytesIO()
    zip_with(members, sink)
    (tmp_path / "a.zip").write_bytes(sink.getvalue())
    items = items_of(tmp_path / "a.zip", chunk_inputs=chunk_inputs)
    assert [item.data for item in items] == [data for _, data in members]
    assert items == items_of(tmp_path / "a.zip")
