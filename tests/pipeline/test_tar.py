import io
import tarfile

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.tar import Member, ShardError, walk_tar

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=120)


def walk(data: bytes) -> list[Member]:
    return list(walk_tar(memoryview(data), "s.tar"))


def write_shard(samples: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with webdataset.TarWriter(sink, mtime=0, encoder=False, compress=False) as writer:
        for key, payload in samples.items():
            writer.write({"__key__": key, "jpg": payload, "json": b"{}"})
    return sink.getvalue()


def write_tar(names: list[str], tar_format: int) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tar_format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            info.mtime = 0.5  # type: ignore[assignment]  # A fraction makes PAX headers.
            tar.addfile(info, io.BytesIO(name.encode("utf-8", "surrogateescape")[: info.size]))
    return sink.getvalue()


@given(st.dictionaries(st.text("abcdef0123456789", min_size=1, max_size=60), st.binary()))
def test_walk_is_the_inverse_of_the_writer(samples):
    data = write_shard(samples)
    members = walk(data)
    expected = [f"{key}.{ending}" for key in samples for ending in ("jpg", "json")]
    assert [member.name for member in members] == expected
    payloads = [data[m.offset : m.offset + m.size] for m in members[::2]]
    assert payloads == list(samples.values())


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_long_names_are_read_in_every_dialect(tar_format):
    names = ["short.jpg", "d" * 60 + "/" + "n" * 90 + ".jpg", "x.jpg"]
    members = walk(write_tar(names, tar_format))
    assert [member.name for member in members] == names
    assert [member.size for member in members] == [len(name) for name in names]


@given(st.lists(NAMES, min_size=1, max_size=4), st.data())
def test_a_cut_tar_never_passes(names, data):
    whole = write_tar(names, tarfile.USTAR_FORMAT)
    end = max(member.offset + member.size for member in walk(whole))
    cut = data.draw(st.integers(0, end - 1))
    with pytest.raises(ShardError, match=r"shard \(=s.tar\) is damaged at byte \d+"):
        walk(whole[:cut])


@given(st.integers(0, 511), st.integers(0, 7))
def test_every_flipped_bit_of_a_header_is_found(position, bit):
    whole = bytearray(write_shard({"a": b"1", "b": b"2"}))
    whole[1024 + position] ^= 1 << bit  # The second header of four.
    if position in (154, 155):  # What ends the checksum field carries nothing.
        return
    with pytest.raises(ShardError, match="byte 1024: "):
        walk(bytes(whole))


def test_a_link_is_refused():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ShardError, match=r"member 'link\.jpg' is no regular file"):
        walk(sink.getvalue())


def test_two_tars_in_one_file_are_refused():
    shard = write_shard({"a": b"1"})
    with pytest.raises(ShardError, match="something follows the end mark"):
        walk(shard + shard)


def test_folders_are_skipped():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("d" * 120)
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("x.jpg"))
    assert [member.name for member in walk(sink.getvalue())] == ["x.jpg"]


def test_the_size_of_a_pax_header_counts():
    body = b"x" * 700
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x.jpg")
        info.size, info.pax_headers = len(body), {"size": "700"}
        tar.addfile(info, io.BytesIO(body))
    (member,) = walk(sink.getvalue())
    assert member.size == 700
