"""What is said of the images in an archive is joined to them, or counted: in shard and index."""

import gzip
import io
import json
import tarfile
import zipfile
from collections import Counter

import pytest
from crawl_inputs import chunks_of, items_of, tar_with
from foreign_shards import index, picture, read_indexes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from pipeline.config import ConfigError
from pipeline.ingest.sources.chunks import read_chunk
from pipeline.shards.damage import DamageError
from pipeline.shards.manifest import Manifest, read_manifest
from pipeline.shards.members import gather, split_name
from pipeline.shards.tar import ShardError, walk_tar

IMAGE = picture(1)
MAC = b"\0\5\x16\7" + bytes(159)


def about(label, **more):
    return json.dumps({"label": label, **more}).encode()


def read(path, **how):
    """All items of an archive, and the counts of what says nothing."""
    dropped = Counter()
    chunks = chunks_of(path, **how)
    items = [i for c in chunks for i in read_chunk(c, max_bytes=10**6, dropped=dropped)]
    return items, dict(dropped)


def said(items):
    return [(item.name.partition("!")[2], item.label, item.caption) for item in items]


def labels_of_index(out):
    made = read_manifest(out)
    return {
        key: made.classes[number] if number >= 0 else None
        for found in read_indexes(out)
        for key, number in zip(found.keys, found.labels.tolist(), strict=True)
    }


CASES = {
    "keys with dots": (
        [("cat.jpg", IMAGE), ("cat.txt", b"a cat"), ("cat.1.jpg", IMAGE), ("cat.1.txt", b"2nd")],
        [("cat.jpg", None, "a cat"), ("cat.1.jpg", None, "2nd")],
        {},
    ),
    "a photo named by a digit takes no other's note": (
        [("cat.jpg", IMAGE), ("cat.txt", b"a cat"), ("cat.1.jpg", IMAGE)],
        [("cat.jpg", None, "a cat"), ("cat.1.jpg", None, None)],
        {},
    ),
    "a mask beside an image": (
        [("1.jpg", IMAGE), ("1.cls", b"7"), ("1.seg.png", IMAGE), ("1.npy", b"x")],
        [("1.jpg", "7", None)],
        {"not_read": 2},
    ),
    "made on a Mac": (
        [
            *(("._0.jpg", MAC), ("0.jpg", IMAGE), ("._0.json", MAC), ("0.json", about("cat"))),
            *(("__MACOSX/._0.txt", MAC), (".DS_Store", b"x"), ("0.txt", b"caption")),
        ],
        [("0.jpg", "cat", "caption")],
        {"apple_double": 3, "ds_store": 1},
    ),
    "all images, then all notes": (
        [
            *((f"db/{i}.jpg", IMAGE) for i in range(40)),
            *((f"db/{i}.json", about("ab"[i % 2], caption="c")) for i in range(40)),
        ],
        [(f"db/{i}.jpg", "ab"[i % 2], "c") for i in range(40)],
        {},
    ),
    "a caption in a class folder": (
        [("cat/1.jpg", IMAGE), ("cat/1.txt", b"x"), ("dog/2.jpg", IMAGE)],
        [("cat/1.jpg", "cat", "x"), ("dog/2.jpg", "dog", None)],
        {},
    ),
    "a folder around all, and no class": (
        [("a/1.jpg", IMAGE), ("a/1.txt", b"x")],
        [("a/1.jpg", None, "x")],
        {},
    ),
    "stated to be of no class": (
        [("cat/1.jpg", IMAGE), ("cat/1.cls", b"-1")],
        [("cat/1.jpg", None, None)],
        {},
    ),
    "a large note": (
        [("1.jpg", IMAGE), ("1.json", about("cat", exif="x" * 1_200_000))],
        [("1.jpg", "cat", None)],
        {},
    ),
    "a note that is too large": (
        [("cat/1.jpg", IMAGE), ("cat/1.txt", b"x" * (2**24 + 1))],
        [("cat/1.jpg", None, None)],
        {"too_big": 1},
    ),
    "a note that is no JSON": (
        [("1.jpg", IMAGE), ("1.json", b"no")],
        [("1.jpg", None, None)],
        {"unreadable": 1},
    ),
    "several images of a key": (
        [("1.jpg", IMAGE), ("1.png", IMAGE), ("1.cls", b"3")],
        [("1.jpg", "3", None), ("1.png", "3", None)],
        {},
    ),
    "roles without a plain image": (
        [("1.input.jpg", IMAGE), ("1.output.jpg", IMAGE), ("1.cls", b"3")],
        [("1.input.jpg", "3", None), ("1.output.jpg", "3", None)],
        {},
    ),
    "a key that repeats": (
        [("a.jpg", IMAGE), ("a.cls", b"1"), ("a.jpg", IMAGE), ("a.cls", b"2")],
        [("a.jpg", "1", None), ("a.jpg#2", "2", None)],
        {},
    ),
}


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_shard_joins_notes_to_their_images(tmp_path, case, ending):
    members, right, dropped = CASES[case]
    path = tmp_path / f"a.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members:
                archive.writestr(name, content)
    else:
        data = tar_with(members)
        path.write_bytes(gzip.compress(data, 1) if ending == "tar.gz" else data)
    items, counts = read(path, chunk_inputs=1)
    assert (said(items), counts) == (right, dropped)
    assert all(item.data for item in items)


def test_far_notes_of_a_compressed_tar_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.sources.tar.MAX_FAR_BYTES", 45)
    notes = [(f"{i:02}.txt", b"x" * 20) for i in range(20)]
    tar = tar_with([*((f"{i:02}.jpg", IMAGE) for i in range(20)), *notes])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar, 1))
    items, dropped = read(tmp_path / "a.tar.gz")
    assert [item.caption for item in items] == ["x" * 20] * 2 + [None] * 18
    assert dropped == {"too_many": 18}


@pytest.mark.parametrize("ending", ["jpg", "cls"])
def test_a_hard_link_is_an_input_with_a_reason(tmp_path, ending):
    link = {"type": tarfile.LNKTYPE, "linkname": "a.jpg"}
    tar_with([("a.jpg", IMAGE), ("a.txt", b"x"), (f"b.{ending}", link)], tmp_path / "a.tar")
    items = items_of(tmp_path / "a.tar")
    assert [(item.problem, item.caption) for item in items] == [(None, "x"), ("bad_record", None)]
    with pytest.raises(Exception, match=rf"member 'b.{ending}' is not a regular file"):
        index([tmp_path / "a.tar"], tmp_path / "out")


def test_a_tar_cut_in_a_member_that_a_pax_header_names_is_read_as_damaged(tmp_path):
    name = "d/" + "\u00e9" * 150 + ".jpg"
    whole = tar_with([("a.jpg", IMAGE), (name, IMAGE)], format=tarfile.PAX_FORMAT)
    cut = whole[: whole.rindex(IMAGE) + 100]
    with pytest.raises(ShardError, match="is truncated"):
        walk_tar(memoryview(cut), "s.tar")
    (tmp_path / "a.tar").write_bytes(cut)
    assert [item.problem for item in items_of(tmp_path / "a.tar")] == [None, "bad_record"]


def test_counts_are_in_the_manifest_and_old_ones_are_read(tmp_path):
    members = CASES["made on a Mac"][0]
    tar_with(members, tmp_path / "s.tar", format=tarfile.USTAR_FORMAT)
    made = index([tmp_path / "s.tar"], tmp_path / "out").manifest
    assert made.notes_dropped == {"apple_double": 3, "ds_store": 1}
    assert made.describe().endswith("duplicate; notes dropped: apple_double 3, ds_store 1")
    old = made.model_dump()
    del old["notes_dropped"]
    assert Manifest(**old).describe() == made.ledger.describe()


PLAIN = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("".join)
SORTED = st.dictionaries(PLAIN, st.sets(st.sampled_from(["jpg", "cls", "json"]), min_size=1))


@settings(max_examples=60, deadline=None)
@given(SORTED)
def test_samples_of_a_tidy_tar_are_the_ones_that_webdataset_makes(samples):
    names = sorted(f"d/{key}.{end}" for key, ends in samples.items() for end in ends)
    tar = tar_with([(name, b"x") for name in names], format=tarfile.USTAR_FORMAT)
    theirs = group_by_keys(tar_file_expander([{"url": "s", "stream": io.BytesIO(tar)}]))
    ours = [(one.key, set(one.endings)) for one in gather(names).samples]
    assert ours == [(one["__key__"], set(one) - {"__key__", "__url__"}) for one in theirs]


CONTENT = {
    "cls": st.sampled_from([b"0", b"1"]),
    "json": st.sampled_from([b'{"label": 2}', b'{"label": 3, "caption": "j"}', b"{}"]),
    "txt": st.sampled_from([b"one", b"two"]),
    "npy": st.just(b"x"),
}
NOTES = (b"0", b"1", b'{"label": 2}', b'{"label": 3, "caption": "j"}', b"{}", b"one", b"two")
KEYS = st.sampled_from(["a", "b", "cat.1", "cat", "x/a", "x/y/b", "e.f.g"])
MARKS = st.sampled_from(["", "", "", "", "._", "__MACOSX/"])


@st.composite
def member(draw):
    key, mark = draw(KEYS), draw(MARKS)
    ending = draw(st.sampled_from(["jpg", "jpg", "png", "cls", "json", "txt", "npy", "seg.png"]))
    folder, _, base = key.rpartition("/")
    name = f"{mark}{key}" if mark.endswith("/") else f"{folder}/{mark}{base}".lstrip("/")
    if draw(st.integers(0, 30)) == 0:
        return f"{name}.{ending}", {"type": tarfile.LNKTYPE, "linkname": "a.jpg"}
    if draw(st.integers(0, 20)) == 0:
        return draw(st.sampled_from(["README", ".jpg", ".DS_Store", "__meta__/n.json"])), b"x"
    return f"{name}.{ending}", draw(CONTENT.get(ending, st.just(IMAGE)))


@st.composite
def tar_members(draw):
    members = draw(st.lists(member(), min_size=1, max_size=12))
    order = draw(st.sampled_from(["any", "any", "sorted", "by ending"]))
    if order == "sorted":
        return sorted(dict(members).items(), key=lambda one: one[0].partition("."))
    if order == "by ending":
        return sorted(members, key=lambda one: one[0].rpartition(".")[2])
    return members


def check_tar(folder, members):
    """Every member is an input, a used note, or counted; shard and index say the same."""
    path = folder / "a.tar"
    members = [*members, ("last.png", picture(2, "PNG"))]
    data = tar_with(members, path, format=tarfile.USTAR_FORMAT)
    items, dropped = read(path)
    gathered = gather([n if isinstance(c, bytes) else None for n, c in members])
    used = {place for one in gathered.inputs() for place in one.notes.values()}
    assert len(items) + len(used) + sum(dropped.values()) == len(members)
    for one, item in zip(gathered.inputs(), items, strict=True):
        notes = {ending: members[place][1] for ending, place in one.notes.items()}
        assert item.caption == caption_of(notes)
    packed = folder / "b.tar.gz"
    packed.write_bytes(gzip.compress(data, 1))
    assert said(read(packed)[0]) == said(items)
    assert said(read(path, chunk_inputs=2)[0]) == said(items)
    if (refusal := refusal_of(path, folder / "out")) is not None:
        assert any(repr(name) in refusal for name, _ in members)
        return
    stated = {
        item.name.partition("!")[2]: item.label if one.notes else None
        for one, item in zip(gathered.inputs(), items, strict=True)
        if item.data not in (b"x", *NOTES)
    }
    found = labels_of_index(folder / "out")
    assert len(found) == len(stated)
    for name, label in stated.items():
        key = max({name, name.rpartition(".")[0], split_name(name)[0]} & found.keys(), key=len)
        folder_class = name.rpartition("/")[0].rpartition("/")[2]
        # Folders are no classes to `index`.
        assert found[key] == (None if label == folder_class else label)


def refusal_of(path, out):
    """The message of `index`, or None where it takes the tar."""
    try:
        index([path], out)
    except (DamageError, ConfigError) as error:
        return str(error)
    return None


def caption_of(notes):
    text = notes.get("txt", b"").decode()
    return text or json.loads(notes.get("json", b"{}")).get("caption")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tar_members())
def test_no_member_of_any_tar_is_lost(tmp_path_factory, members):
    check_tar(tmp_path_factory.mktemp("tar"), members)


@pytest.mark.slow
@settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tar_members())
def test_no_member_of_two_thousand_tars_is_lost(tmp_path_factory, members):
    check_tar(tmp_path_factory.mktemp("tar"), members)
