import base64
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_inputs import JPEG, chunks_of, items_of, pairs

from pipeline.config import ConfigError
from pipeline.ingest.sources.chunks import read_chunk

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": ["cat", "dog"]},
}
ROWS = 10


def hub_table(**more):
    """A table as Hugging Face writes it; rows 3 and 4 have no image."""
    images = [{"bytes": JPEG + bytes([65 + i]), "path": f"{i}.jpg"} for i in range(ROWS)]
    images[3:5] = [None, {"bytes": None, "path": None}]
    columns = {
        "image": pa.array(images, IMAGE),
        "label": pa.array([i % 2 for i in range(ROWS - 1)] + [-1]),
        "text": pa.array([f"a picture {i}" for i in range(ROWS)]),
        "score": pa.array([i / 4 for i in range(ROWS)]),
        "mask": pa.array([b"\x89PNG"] * ROWS),
        "boxes": pa.array([[1, 2]] * ROWS),
        **more,
    }
    about = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    return pa.table(columns).replace_schema_metadata(about)


def write_arrow(table, path, *, as_stream):
    make = pa.ipc.new_stream if as_stream else pa.ipc.new_file
    with make(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write(table, path):
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        write_arrow(table, path, as_stream=path.suffix == ".arrow")
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_rows_of_the_hub_are_inputs(tmp_path, name):
    path = write(hub_table(), tmp_path / name)
    items = items_of(path)
    good = {i: JPEG + bytes([65 + i]) for i in range(ROWS) if i not in (3, 4)}
    assert pairs(items) == [(f"{name}!{i}", good.get(i, "empty")) for i in range(ROWS)]
    assert [item.label for item in items] == [*["cat", "dog"] * 4, "cat", None]
    assert items[1].caption == "a picture 1"
    assert items[1].metadata == {"score": "0.25"}


def test_any_cut_gives_the_same_rows(tmp_path):
    path = write(hub_table(), tmp_path / "a.parquet")
    whole = items_of(path)
    assert [chunk.num_inputs for chunk in chunks_of(path, chunk_inputs=3)] == [4, 4, 2]
    assert all(items_of(path, chunk_inputs=n) == whole for n in range(1, 12))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_columns_of_bytes_are_found(tmp_path, kind):
    table = pa.table({"jpg": pa.array([JPEG, b"x" * 101, b""], kind), "label": ["a", None, "b"]})
    items = items_of(write(table, tmp_path / "a.parquet"), max_bytes=100)
    assert [item.problem or item.data for item in items] == [JPEG, "too_big", "empty"]
    assert [item.label for item in items] == ["a", None, "b"]


def test_odd_values_do_no_harm(tmp_path):
    moments = pa.array([2**62 + 1, None], pa.timestamp("ns"))  # Python has no nanoseconds.
    words = pa.array([b"caf\xe9", b"ok"]).view(pa.string())
    kinds = pa.array(["x", "y"]).dictionary_encode()
    columns = {"image": [JPEG, JPEG], "when": moments, "words": words, "kind": kinds}
    first, second = items_of(write(pa.table(columns), tmp_path / "a.parquet"))
    assert first.metadata["words"] == "caf\\xe9"
    assert first.metadata["when"].endswith(".427387905")
    assert second.metadata == {"words": "ok", "kind": "y"}


PATHS = [
    ("pictures/1.jpg", JPEG),
    ("../secret.jpg", "bad_record"),
    ("/etc/hostname", "bad_record"),
    ("http://127.0.0.1:1/1.jpg", "bad_record"),
    ("file:///etc/hostname", "bad_record"),
    ("a\0b", "bad_record"),
    ("gone.jpg", "unreadable"),
    ("link.jpg", "changed"),
    ("pictures", "changed"),
    ("empty.jpg", "empty"),
    ("big.jpg", "too_big"),
    (None, "empty"),
]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_paths_lie_below_the_table(tmp_path, name):
    folder = tmp_path / "set"
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures/1.jpg").write_bytes(JPEG)
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "big.jpg").write_bytes(b"x" * 101)
    (folder / "link.jpg").symlink_to("/etc/hostname")
    if name == "a.jsonl":
        rows = [{"file_name": path} for path, _ in PATHS]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.table({"file_name": [path for path, _ in PATHS]}), folder / name)
    found = [what for _, what in pairs(items_of(folder / name, max_bytes=100))]
    assert found == [what for _, what in PATHS]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            pa.table({"url": ["x"], "n": [1]}),
            r"no column of images, only url \(string\), n \(int64",
        ),
        (pa.table({"a": [b"x"], "b": [b"y"]}), "no column of images, only a"),  # Which one?
        (hub_table()[:0], r"has no row, only columns image \(struct"),
    ],
)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_tables_without_images_are_refused(tmp_path, name, table, message):
    with pytest.raises(ConfigError, match=message):
        chunks_of(write(table, tmp_path / name))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
@pytest.mark.parametrize("cut", [0, 5, -3])
def test_a_table_whose_frame_is_cut_is_refused(tmp_path, name, cut):
    path = write(hub_table(), tmp_path / name)
    path.write_bytes(path.read_bytes()[:cut])
    if (name, cut) == ("a.arrow", -3):  # A stream is cut behind its last batch: that is all of it.
        assert len(items_of(path)) >= ROWS
        return
    with pytest.raises(ConfigError, match=rf"table \(=.*{name}\) is (damaged|empty)"):
        chunks_of(path)


def test_a_damaged_row_group_costs_no_other(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(hub_table(), path, row_group_size=2, compression="zstd", use_dictionary=False)
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = group.data_page_offset
    data[start : start + 30] = bytes(30)
    path.write_bytes(data)
    chunks = chunks_of(path)
    items = [item for chunk in chunks for item in read_chunk(chunk, max_bytes=1000)]
    assert [item.name.partition("!")[2] for item in items] == ["0", "1", "@2", *"456789"]
    assert items[2].problem == "bad_record"


LINES = [
    ({"image": base64.b64encode(JPEG).decode(), "label": 3, "text": "three"}, JPEG),
    ({"jpg": "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()}, JPEG),
    ({"image": {"bytes": base64.b64encode(JPEG).decode()}, "label": "cat", "url": "u"}, JPEG),
    ({"bytes": base64.b64encode(b"x" * 9000).decode()}, "too_big"),
    ({"image": "1.jpg"}, JPEG),  # No base64.
    ({"image": None}, "empty"),
    ({}, "empty"),
    ([1], "bad_record"),
    ({"image_path": "1.jpg", "label": "\ud800"}, JPEG),
]


def test_lines_are_inputs(tmp_path):
    (tmp_path / "1.jpg").write_bytes(JPEG)
    text = "\n".join(json.dumps(row) for row, _ in LINES)
    (tmp_path / "a.jsonl").write_text(text + "\n\n{broken\n" + json.dumps(LINES[0][0]))
    items = items_of(tmp_path / "a.jsonl", max_bytes=1000)
    assert [what for _, what in pairs(items)] == [*(what for _, what in LINES), "bad_record", JPEG]
    labels = [item.label for item in items]
    assert labels == ["3", None, "cat", None, None, None, None, None, "\\ud800", None, "3"]
    assert (items[0].caption, items[2].metadata) == ("three", {"url": "u"})
    assert [item.name for item in items][6:8] == ["a.jsonl!6", "a.jsonl!@7"]
    for chunk_inputs in (1, 2, 5):
        assert items_of(tmp_path / "a.jsonl", max_bytes=1000, chunk_inputs=chunk_inputs) == items


def test_a_line_without_end_is_too_big_and_is_not_held(tmp_path):
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"image": "' + b"A" * 3_000_000 + b'"}\n' + json.dumps(LINES[0][0]).encode())
    found = [what for _, what in pairs(items_of(tmp_path / "a.jsonl", max_bytes=1000))]
    assert found == ["too_big", JPEG]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line"),
        ("\n\n", "has no line"),
        ('{"url": 1, "text": 2}\n', "no image in its first line, only url, text"),
    ],
)
def test_lines_without_images_are_refused(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        chunks_of(tmp_path / "a.jsonl")
