import os
import pickle
import socket
import tracemalloc

import pytest
from crawl_inputs import chunks_of, items_of, pairs, tar_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.ingest.sources.chunks import read_chunk
from pipeline.ingest.sources.find import list_tree
from pipeline.ingest.sources.names import escape, is_wanted
from pipeline.ingest.sources.source_list import SourceConfig, parse_sources


def put(folder, *names, data=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def names_of(*arguments, **how):
    return [item.name for item in items_of(*arguments, **how)]


def test_every_regular_file_of_a_folder_is_an_input(tmp_path):
    root = tmp_path / "crawl"
    put(root, "b/2.jpg", "a/1.jpg", "a/.DS_Store", "a/page.html", "a/deep/3.JPG", "noext", "c.tar")
    (root / "loop").symlink_to(root)
    (root / "link.jpg").symlink_to(root / "a/1.jpg")
    os.mkfifo(root / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket.jpg"))
        items = items_of(root)
    assert [(item.name, item.label) for item in items] == [
        ("crawl/a/.DS_Store", "a"),
        ("crawl/a/1.jpg", "a"),
        ("crawl/a/deep/3.JPG", "deep"),
        ("crawl/a/page.html", "a"),
        ("crawl/b/2.jpg", "b"),
        ("crawl/c.tar", None),
        ("crawl/noext", None),
    ]


def test_an_image_is_a_source_of_one(tmp_path):
    put(tmp_path, "a/1.JPG", "b/1.JPG")
    assert names_of(tmp_path / "a/1.JPG", tmp_path / "b/1.JPG") == ["a/1.JPG", "b/1.JPG"]


def test_patterns_give_files_folders_and_archives(tmp_path):
    put(tmp_path, "set/0.jpg", "set/1.jpg", "set/2.png", "set/x/3", data=b"data")
    assert names_of(f"{tmp_path}/set/*.jpg") == ["set/0.jpg", "set/1.jpg"]
    assert names_of(f"{tmp_path}/set/{{0,1}}.jpg") == ["set/0.jpg", "set/1.jpg"]
    assert names_of(f"{tmp_path}/set/[x2]*") == ["set/2.png", "set/x/3"]
    both = names_of(f"{tmp_path}/set/*.jpg", f"{tmp_path}/set/*.png")
    assert both == ["set/0.jpg", "set/1.jpg", "set#2/2.png"]


def test_odd_names_are_plain_unicode_and_can_be_read(tmp_path):
    odd = [
        b"caf\xe9\n.jpg",
        b"tab\t:,.jpg",
        "\N{CAT FACE}.jpg".encode(),
        b"n" * 250,
        b"a\\b",
        b"!@",
    ]
    for name in odd:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    items = items_of(tmp_path)
    assert sorted(item.data for item in items) == sorted(odd)
    for item in items:
        item.name.encode()


def test_what_changes_after_the_listing_is_a_problem(tmp_path):
    put(tmp_path, *(f"{i}.jpg" for i in range(7)), data=b"data")
    chunks = chunks_of(tmp_path)
    (tmp_path / "0.jpg").unlink()
    (tmp_path / "1.jpg").write_bytes(b"longer data")
    os.utime(tmp_path / "2.jpg", (1, 1))
    (tmp_path / "3.jpg").unlink()
    (tmp_path / "3.jpg").symlink_to(tmp_path / "6.jpg")
    (tmp_path / "4.jpg").unlink()
    os.mkfifo(tmp_path / "4.jpg")
    (tmp_path / "5.jpg").unlink()
    (tmp_path / "5.jpg").mkdir()
    found = [what for chunk in chunks for _, what in pairs(read_chunk(chunk, max_bytes=10))]
    assert found == [*["changed"] * 6, b"data"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_what_may_not_be_read_is_a_problem(tmp_path):
    put(tmp_path, "1.jpg")
    (tmp_path / "1.jpg").chmod(0)
    assert pairs(items_of(tmp_path))[0][1] == "unreadable"


def test_sizes_are_judged_without_reading(tmp_path):
    put(tmp_path, "0.jpg", data=b"")
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(2**40)  # More than any memory.
    put(tmp_path, "2.jpg", data=b"xy")
    assert [what for _, what in pairs(items_of(tmp_path, max_bytes=2))] == [
        "empty",
        "too_big",
        b"xy",
    ]


FILES = st.dictionaries(
    st.lists(
        st.sampled_from(["a", "a.b", "a b", "é", "x.jpg", "#2", "\udce9", "\\"]),
        min_size=1,
        max_size=3,
    ).map("/".join),
    st.binary(min_size=1, max_size=3),
    min_size=1,
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(FILES, st.integers(1, 9))
def test_the_union_of_chunks_does_not_depend_on_their_size(tmp_path_factory, files, chunk_inputs):
    root = tmp_path_factory.mktemp("crawl")
    kept = {}
    for name, data in files.items():
        if not any(other != name and other.startswith(f"{name}/") for other in files):
            put(root, name, data=data)
            kept[f"{root.name}/{escape(name)}"] = data
    items = items_of(root, chunk_inputs=chunk_inputs)
    assert pairs(items) == sorted(kept.items())
    assert items == items_of(root)


def test_a_listing_takes_little_memory(tmp_path):
    """A driver knows all files of a crawl, so it is what each costs that counts."""
    put(tmp_path, *(f"{i // 500:03}/{i:06}.jpg" for i in range(4000)))
    list(list_tree(str(tmp_path), lambda path: True, ()))  # What is loaded once.
    tracemalloc.start()
    chunks = chunks_of(tmp_path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(chunk.files) for chunk in chunks) == 4000
    assert kept < 4000 * 50
    assert peak - kept < 1000 * 800  # A folder and a chunk at a time, never the tree.


def test_chunks_are_small_stable_and_named_by_what_they_read(tmp_path):
    put(tmp_path, *(f"{i:03}.jpg" for i in range(20)))
    first, second = chunks_of(tmp_path, chunk_inputs=10)
    assert first == pickle.loads(pickle.dumps(first))
    assert [chunk.id for chunk in chunks_of(tmp_path, chunk_inputs=10)] == [first.id, second.id]
    (tmp_path / "000.jpg").write_bytes(b"other")
    again = chunks_of(tmp_path, chunk_inputs=10)
    assert again[0].id != first.id
    assert again[1].id == second.id


def test_include_and_exclude_are_about_the_path_below_the_source(tmp_path):
    put(tmp_path / "crawl", "a/1.jpg", "a/1.txt", "a/thumbs/2.jpg", "b/3.JPG", "4.jpg")
    chosen = names_of(tmp_path / "crawl", include=["*.jpg"], exclude=["**/thumbs/"])
    assert chosen == ["crawl/4.jpg", "crawl/a/1.jpg"]


@pytest.mark.parametrize(
    ("path", "pattern", "matches"),
    [
        ("a/b.jpg", "*.jpg", True),
        ("a/b.jpg", "a/*", True),
        ("a/b/c.jpg", "a/*", False),
        ("a/b/c.jpg", "a/**", True),
        ("a/b/c.jpg", "**/c.jpg", True),
        ("c.jpg", "**/c.jpg", True),
        ("a/b/c.jpg", "a/", True),
        ("ab/c.jpg", "a/", False),
        ("c1.jpg", "c[0-9].jpg", True),
        ("c1.jpg", "c[!0-9].jpg", False),
        ("c\n.jpg", "c?.jpg", True),
        ("a(b", "a(b", True),
    ],
)
def test_globs(path, pattern, matches):
    assert is_wanted(path, [pattern], []) == matches
    assert is_wanted(path, [], [pattern]) != matches


def test_a_yaml_lists_sources(tmp_path):
    put(tmp_path, "x/images/cat/1.jpg", "y/images/dog/2.jpg", "z/3.jpg")
    (tmp_path / "sources.yaml").write_text(
        f"""sources:
        - path: {tmp_path}/x/images
          weight: 3
          labels: false
        - {{path: "{tmp_path}/y/images", name: other, include: ["*.jpg"]}}
        """
    )
    listed = parse_sources([f"{tmp_path}/sources.yaml", f"{tmp_path}/z"], ["*.jpg", "*.png"], [])
    assert [(s.name, s.weight, s.labels, len(s.include)) for s in listed.sources] == [
        ("images", 3, False, 2),
        ("other", 1, True, 1),
        ("z", 1, True, 2),
    ]
    items = items_of(tmp_path / "sources.yaml", tmp_path / "z")
    assert [(item.name, item.label) for item in items] == [
        ("images/cat/1.jpg", None),
        ("other/dog/2.jpg", "dog"),
        ("z/3.jpg", None),
    ]


def test_equal_folder_names_are_told_apart(tmp_path):
    put(tmp_path, "x/images/1.jpg", "y/images/1.jpg")
    found = names_of(tmp_path / "x/images", tmp_path / "y/images")
    assert found == ["x/images/1.jpg", "y/images/1.jpg"]


def test_an_archive_in_a_folder_is_one_file_unless_it_is_given(tmp_path):
    put(tmp_path / "crawl", "1.jpg")
    tar_with([("2.jpg", b"2")], tmp_path / "crawl/a.tar")
    assert names_of(tmp_path / "crawl", max_bytes=10**6) == ["crawl/1.jpg", "crawl/a.tar"]
    both = names_of(tmp_path / "crawl", tmp_path / "crawl/a.tar")
    assert both == ["crawl/1.jpg", "a.tar!2.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], r"source \(=.*gone\) cannot be read: No such file"),
        (["gone/*.tar"], r"source \(=.*\*\.tar\) matches no file"),
        (["a", "a"], "overlap; give each folder or file once"),
        (["a", "a/b"], "overlap; give each folder or file once"),
        (["a", "a/b/1.jpg"], "overlap; give each folder or file once"),
        (["a/b/1.jpg", "link.jpg"], "overlap; give each folder or file once"),
        (["empty"], "have no matching file; give a folder of images"),
        (["x.7z"], r"source \(=.*x\.7z\) is of no kind known by its name: \.tar, .*Unpack it"),
        (["a/{1..2"], r"source \(=.*\) has unbalanced braces"),
        (["a/{1..99999999}.tar"], "expands to more than 1000000 files"),
        (["pipe.jpg"], "is not a regular file"),
        (["rsync://h/a"], "has scheme rsync, which is none of"),
        (["gs://bucket/a.tar"], "needs a package that is not installed: pip install gcsfs"),
        (["bad.yaml"], "bad.yaml: sources.0.inclde is no known key; did you mean include"),
        (["none.yaml"], "sources.*must hold a source"),
        (["same.yaml"], r"source name \(=n\) is given twice"),
        (["inside.yaml"], r"source names \(=n, n/m\) must not be nested"),
        ([], "give a folder of images or an archive"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "a/b/1.jpg", "x.7z")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.jpg").symlink_to("a/b/1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "bad.yaml").write_text("sources: [{path: a, inclde: [b]}]")
    (tmp_path / "none.yaml").write_text("sources: []")
    (tmp_path / "same.yaml").write_text("sources: [{path: a, name: n}, {path: empty, name: n}]")
    (tmp_path / "inside.yaml").write_text("sources: [{path: a, name: n}, {path: b, name: n/m}]")
    with pytest.raises(ConfigError, match=message) as caught:
        chunks_of(*arguments)
    assert "\n" not in str(caught.value)


def test_a_name_is_no_part_of_a_path():
    with pytest.raises(ValueError, match="must not be empty, nor begin or end with a slash"):
        SourceConfig(path="a", name="/a")
