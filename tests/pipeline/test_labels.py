"""What sources say of images: values into labels, columns, notes beside files, copies."""

import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from crawl_inputs import JPEG, items_of, tar_with
from crawled_rows import content, look, row, write_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.plan import make_plan, rows_of
from pipeline.shards.labels import number_of, sort_classes, to_label
from pipeline.shards.samples import RawSample, read_label
from pipeline.shards.tar import walk_tar


@given(st.integers(0, 2**53))
def test_a_whole_number_is_one_class_however_it_is_written(number):
    written = [number, float(number), str(number), f"{number}.0", f" {number}\n", f"0{number}"]
    assert {to_label(value).name for value in written} == {str(number)}
    assert number_of(str(number)) == number


@pytest.mark.parametrize("value", [None, float("nan"), "", " ", "NaN", -1, -1.0, "-1", "-1.0"])
def test_what_is_not_there_is_no_label(value):
    assert to_label(value) == to_label(value, ["cat"]) == (None, None)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (True, "boolean"),
        (0.5, "fraction"),
        (float("inf"), "fraction"),
        (-2, "negative"),
        ("-2", "negative"),
        ([1], "list"),
        ({"bytes": b""}, "mapping"),
        (b"cat", "type"),
    ],
)
def test_what_cannot_be_a_class_has_a_reason(value, problem):
    assert to_label(value) == (None, problem)


@given(st.lists(st.integers(0, 10**6), unique=True), st.lists(st.sampled_from("abc"), unique=True))
def test_numbers_are_sorted_by_value_and_before_names(numbers, names):
    assert sort_classes([*names, *map(str, numbers)]) == [
        *map(str, sorted(numbers)),
        *sorted(names),
    ]


FLOATS = st.floats(-5, 99) | st.sampled_from([3.0, 1e99, float("nan"), float("inf")])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 99), FLOATS, st.text(max_size=5), st.just([1])
)


@settings(deadline=None, max_examples=60)
@given(VALUES)
def test_shard_and_index_read_one_label_of_a_json(value):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        about = json.dumps({"label": value}).encode()
        data = memoryview(tar_with([("1.jpg", JPEG), ("1.json", about)], path))
        image, note = walk_tar(data, "a")
        sample = RawSample("1", image.start, {"json": note})
        (item,) = items_of(path)
    label = read_label(data, sample, "a")
    assert (label.name, label.notes) == (item.label, item.notes)


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def table_of(tmp_path, columns, features=None):
    """Write columns to an Arrow file; what Hugging Face declares goes to its metadata."""
    table = pa.table(columns)
    if features is not None:
        about = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(about)
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    return path


KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
BYTES = [
    *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(JPEG))),
    pa.dictionary(pa.int32(), pa.binary()),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_text_is_a_label(tmp_path, kind):
    labels = pa.array(["cat", None, "3.0"]).cast(kind)
    path = table_of(tmp_path, {"image": [JPEG] * 3, "label": labels})
    assert [item.label for item in items_of(path)] == ["cat", None, "3"]


@pytest.mark.parametrize("kind", BYTES, ids=str)
def test_any_bytes_are_an_image(tmp_path, kind):
    images = pa.array([JPEG, None], pa.binary())
    images = images.dictionary_encode() if pa.types.is_dictionary(kind) else images.cast(kind)
    items = items_of(table_of(tmp_path, {"image": images, "n": [1, 2]}))
    assert [item.problem or item.data for item in items] == [JPEG, "empty"]


def test_each_image_of_a_list_is_an_input(tmp_path):
    lists = [[{"bytes": JPEG, "path": None}] * 2, [], None]
    columns = {"images": pa.array(lists, pa.list_(IMAGE)), "label": [1, 2, 3]}
    items = items_of(table_of(tmp_path, columns))
    found = [(item.name, item.problem or item.data, item.label) for item in items]
    assert found == [
        ("a.arrow!0", JPEG, "1"),
        ("a.arrow!0#2", JPEG, "1"),
        ("a.arrow!1", "empty", "2"),
        ("a.arrow!2", "empty", "3"),
    ]


def test_hashes_are_no_images_and_columns_passed_over_are_named(tmp_path):
    hashes = pa.array([b"0" * 16], pa.binary(16))
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (item,) = items_of(table_of(tmp_path, {"file_name": ["1.jpg"], "md5": hashes}))
    assert (item.data, item.notes) == (JPEG, ("column_passed_over: md5",))


def classes(*names):
    return {"_type": "ClassLabel", "names": list(names)}


def test_a_column_named_label_beats_other_classes(tmp_path):
    features = {"sex": classes("male", "female"), "label": classes("cat", "dog")}
    columns = {"image": [JPEG] * 3, "sex": [0, 0, 1], "label": [1.0, -1, 5]}
    items = items_of(table_of(tmp_path, columns, features))
    assert [item.label for item in items] == ["dog", None, None]
    assert [item.notes for item in items] == [(), (), ("label_unknown_class",)]


def test_one_column_of_classes_is_the_label_and_two_are_refused(tmp_path):
    columns = {"image": [JPEG], "fine": [1], "coarse": [0]}
    features = {"fine": classes("cat", "dog")}
    assert [item.label for item in items_of(table_of(tmp_path, columns, features))] == ["dog"]
    features["coarse"] = classes("pet")
    with pytest.raises(ConfigError, match="2 columns of classes, fine, coarse, and none is called"):
        items_of(table_of(tmp_path, columns, features))


@pytest.mark.parametrize("column", ["content", "data", "bytes", "image"])
def test_text_beside_a_file_name_is_no_path(tmp_path, column):
    (tmp_path / "1.jpg").write_bytes(JPEG)
    line = {"file_name": "1.jpg", column: "a cat", "label": [1]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    (item,) = items_of(tmp_path / "a.jsonl")
    assert (item.data, item.label, item.notes) == (JPEG, None, ("label_list",))


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_metadata_of_an_imagefolder_holds_below_its_folder(tmp_path, ending):
    for name in ("train/cat/1.jpg", "train/2.jpg", "test/3.jpg"):
        put(tmp_path / "set" / name, JPEG)
    rows = [("cat/1.jpg", "3", "one"), ("2.jpg", "", "two")]
    text = "file_name,label,text\n" + "".join(",".join(cells) + "\n" for cells in rows)
    if ending == "jsonl":
        keys = ("file_name", "label", "text")
        text = "\n".join(json.dumps(dict(zip(keys, cells, strict=True))) for cells in rows)
    put(tmp_path / f"set/train/metadata.{ending}", text.encode())
    found = {item.name: (item.label, item.caption) for item in items_of(tmp_path / "set")}
    assert found == {
        "set/test/3.jpg": (None, None),
        "set/train/2.jpg": (None, "two"),
        "set/train/cat/1.jpg": ("3", "one"),
    }


def test_files_of_img2dataset_are_read_as_they_are_meant(tmp_path):
    for key in ("00000/000000001", "00001/000010001"):
        put(tmp_path / f"set/{key}.jpg", JPEG)
        put(tmp_path / f"set/{key}.txt", b"a caption")
        put(tmp_path / f"set/{key}.json", b'{"url": "u"}')
        put(tmp_path / f"set/{key[:5]}_stats.json", b"{}")
        put(tmp_path / f"set/{key[:5]}.parquet", b"PAR1")
    put(tmp_path / "set/alone.txt", b"no image is beside it")
    items = [(i.name, i.label, i.caption, i.metadata) for i in items_of(tmp_path / "set")]
    assert items == [
        ("set/00000/000000001.jpg", None, "a caption", {"url": "u"}),
        ("set/00001/000010001.jpg", None, "a caption", {"url": "u"}),
        ("set/alone.txt", None, None, {}),
    ]


COPIES = st.lists(
    st.tuples(
        st.integers(0, 3),  # look
        st.integers(0, 1),  # content of that look
        st.sampled_from([None, "cat", "dog"]),
        st.booleans(),  # whether the label is a folder's name
        st.sampled_from([None, "x", "y"]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=25)
@given(COPIES)
def test_what_is_kept_says_what_its_copies_say(copies):
    rows = [
        row(
            f"{number}",
            alike * 2 + which,
            content_hash=content(alike * 2 + which),
            near_words=look(alike),
            label=label,
            is_inferred=is_inferred and label is not None,
            caption=caption,
        )
        for number, (alike, which, label, is_inferred, caption) in enumerate(copies)
    ]
    conflicts = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = write_tables(folder, rows, 2)
        plan = make_plan(tables, len(rows), folder / "plan", ShardConfig())
        kept = rows_of(plan.folder, 0, plan.borders[-1]).to_pylist()
        lost = plan.excluded.to_pylist()
    for one in kept:
        alike = copies[int(one["name"])][0]
        group = [copy for copy in copies if copy[0] == alike]
        stated = {label for _, _, label, is_inferred, _ in group if label and not is_inferred}
        labels = stated or {label for _, _, label, _, _ in group if label}
        assert one["label"] == (labels.pop() if len(labels) == 1 else None)
        conflicts += len(labels) > 1
        captions = {caption for *_, caption in group if caption}
        assert one["caption"] in captions if captions else one["caption"] is None
        own = copies[int(one["name"])][4]
        assert own is None or one["caption"] == own
        named = [row["label_conflict"] for row in lost if row["winner"] == one["name"]]
        assert all(labels == (sorted(labels) if labels else None) for labels in named)
    assert plan.label_conflicts == conflicts
