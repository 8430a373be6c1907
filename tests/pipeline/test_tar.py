import io
import itertools
import tarfile

import pytest
import webdataset
from hypothesis import given, reject
from hypothesis import strategies as st

from pipeline.shards.tar import Member, ShardError, walk_tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=100)
ODD_NAMES = st.one_of(
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=60),
    st.text("ab/.\n =\xe9", min_size=1, max_size=300),
).filter(lambda name: not name.endswith("/"))


def walk(data: bytes | bytearray) -> list[Member]:
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


@pytest.mark.parametrize("tar_format", FORMATS)
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


def headers_of(data: bytes) -> list[int]:
    """Offsets of all headers of a tar of files, extensions too, as the standard library sees it."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    return sorted({m.offset for m in members} | {m.offset_data - 512 for m in members})


@pytest.mark.parametrize("tar_format", FORMATS)
def test_every_flipped_bit_of_every_header_is_found(tar_format):
    whole = write_tar(["a.jpg", "d" * 60 + "/" + "n" * 90 + ".jpg"], tar_format)
    headers = headers_of(whole)
    assert len(headers) == {tarfile.USTAR_FORMAT: 2, tarfile.GNU_FORMAT: 3}.get(tar_format, 4)
    for header, position, bit in itertools.product(headers, range(512), range(8)):
        flipped = bytearray(whole)
        flipped[header + position] ^= 1 << bit
        with pytest.raises(ShardError, match=f"at byte {header}: "):
            walk(flipped)


@given(NAMES, st.sampled_from([b"\0 ", b" \0", b"7"]), st.integers(0, 63))
def test_every_form_of_checksum_that_writers_use_is_read(name, end, bit):
    data = bytearray(write_tar([name], tarfile.USTAR_FORMAT))
    if end == b"7":
        data[148:156] = b"%07o\0" % int(data[148:154], 8)
    else:
        data[154:156] = end
    assert [member.name for member in walk(data)] == [name]
    data[148 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(ShardError, match="at byte 0: the header checksum is wrong"):
        walk(data)


@given(
    st.lists(st.tuples(ODD_NAMES, st.integers(0, 1500), st.booleans()), max_size=5),
    st.sampled_from(FORMATS),
    st.sampled_from([0, 1.5]),  # A fraction makes a PAX header for every member.
)
def test_the_walk_sees_what_the_standard_library_sees(files, tar_format, mtime):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tar_format) as tar:
        for name, size, is_folder in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 0 if is_folder else size, mtime  # type: ignore[assignment]
            info.type = tarfile.DIRTYPE if is_folder else tarfile.REGTYPE
            try:
                tar.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:
                reject()  # USTAR holds 255 bytes of name, with a slash at the right place.
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as tar:
        seen = [(m.name, m.offset, m.offset_data, m.size) for m in tar if m.isreg()]
    assert [tuple(member) for member in walk(sink.getvalue())] == seen


@pytest.mark.parametrize(
    ("field", "size"),
    [
        (b"00000000005\0", 5),
        (b"000000000005", 5),
        (b"         5 \0", 5),
        (b"5" + bytes(11), 5),
        (bytes(12), 0),
        (b"\x80" + bytes(10) + b"\x05", 5),  # GNU's binary form.
        (b"-0000000005\0", None),  # Would lead back to where it came from.
        (b"\xff" * 12, None),
        (b"5 apples\0\0\0\0", None),
    ],
)
def test_the_size_is_read_in_every_form(field, size):
    data = bytearray(write_tar(["a.jpg"], tarfile.USTAR_FORMAT))
    data[124:136], data[512:1024] = field, bytes(512)
    seal(data, 0)
    if size is None:
        with pytest.raises(ShardError, match="at byte 0: the size is not a number"):
            walk(data)
    else:
        assert [member.size for member in walk(data)] == [size]


def seal(data: bytearray, header: int) -> None:
    """Make the checksum of a header right."""
    data[header + 148 : header + 156] = b" " * 8
    data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"99 path=a.jpg\n", "the PAX header is malformed"),
        (b"0 path=a.jpg\n", "the PAX header is malformed"),
        (b"path=a.jpg\n", "the PAX header is malformed"),
        (b"11 size=-1\n", "the PAX header is malformed"),
        (b"22 GNU.sparse.major=1\n", "the member is a sparse file"),
        (b"20 size=99999999999\n", "member 'a.jpg' is truncated"),
        (bytes(2**20 + 1), "an extension header of 1048577 bytes is too large"),
    ],
)
def test_a_hostile_extension_is_refused(body, what):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        extension = tarfile.TarInfo("x")
        extension.type, extension.size = tarfile.XHDTYPE, len(body)
        tar.addfile(extension, io.BytesIO(body))
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(ShardError, match=what):
        walk(sink.getvalue())


def test_a_size_that_leads_astray_is_blamed_and_not_where_it_led():
    data = bytearray(write_shard({key: bytes(3000) for key in "abcdef"}))
    second = walk(data)[2].start
    data[second + 134] ^= 4  # Leads into the payload, whose zeros look like an end mark.
    with pytest.raises(ShardError, match=f"at byte {second}: the header checksum is wrong"):
        walk(data)


@given(st.lists(st.tuples(NAMES, st.integers(0, 2000)), min_size=1, max_size=5))
def test_members_tile_the_tar_up_to_its_end_mark(files):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, size in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, 0.5  # type: ignore[assignment]
            tar.addfile(info, io.BytesIO(bytes(size)))
    members = walk(sink.getvalue())
    ends = [-(-(member.offset + member.size) // 512) * 512 for member in members]
    assert [member.start for member in members] == [0, *ends[:-1]]


@pytest.mark.parametrize("length", [0, 1, 511])
def test_less_than_a_header_is_no_tar(length):
    with pytest.raises(ShardError, match="at byte 0: the tar has no end marker"):
        walk(bytes(length))


def test_a_link_is_refused():
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("link.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ShardError, match=r"member 'link\.jpg' is not a regular file"):
        walk(sink.getvalue())


def test_two_tars_in_one_file_are_refused():
    shard = write_shard({"a": b"1"})
    with pytest.raises(ShardError, match="data follows the end marker"):
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
