import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.crawl.sources import escape, list_sources, source_names


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_every_regular_file_is_an_input_in_sorted_order(tmp_path):
    root = tmp_path / "crawl"
    put(root, "b/2.jpg", "a/1.jpg", "a/.DS_Store", "a/page.html", "a/deep/3.JPG", "noext")
    paths = [source.path for source in list_sources([root])]
    assert paths == [
        "crawl/a/.DS_Store",
        "crawl/a/1.jpg",
        "crawl/a/deep/3.JPG",
        "crawl/a/page.html",
        "crawl/b/2.jpg",
        "crawl/noext",
    ]


def test_links_pipes_and_sockets_are_no_inputs(tmp_path):
    root = tmp_path / "crawl"
    put(root, "a/1.jpg")
    (root / "loop").symlink_to(root)
    (root / "link.jpg").symlink_to(root / "a/1.jpg")
    os.mkfifo(root / "pipe.jpg")
    server = socket.socket(socket.AF_UNIX)
    with server:
        server.bind(str(root / "socket.jpg"))
        assert [source.path for source in list_sources([root])] == ["crawl/a/1.jpg"]


def test_the_last_folder_level_gives_the_labels(tmp_path):
    root = tmp_path / "crawl"
    put(root, "site1/cat/1.jpg", "site2/cat/2.jpg", "site2/dog/3.jpg", "stray.jpg")
    labels = {source.path: source.label for source in list_sources([root])}
    assert labels == {
        "crawl/site1/cat/1.jpg": "cat",
        "crawl/site2/cat/2.jpg": "cat",
        "crawl/site2/dog/3.jpg": "dog",
        "crawl/stray.jpg": None,
    }


def test_one_folder_gives_no_labels(tmp_path):
    put(tmp_path, "cat/1.jpg", "cat/2.jpg")
    assert {source.label for source in list_sources([tmp_path])} == {None}


def test_names_that_are_not_utf8_are_escaped_and_can_be_opened(tmp_path):
    name = os.fsdecode(b"caf\xe9\n.jpg")
    (tmp_path / name).write_bytes(b"data")
    (source,) = list_sources([tmp_path])
    assert source.path == f"{tmp_path.name}/caf\\xe9\n.jpg"
    assert Path(source.file).read_bytes() == b"data"


@given(st.binary(), st.binary())
def test_no_two_names_share_an_escaped_form(a, b):
    names = os.fsdecode(a), os.fsdecode(b)
    assert (escape(names[0]) == escape(names[1])) == (a == b)
    escape(names[0]).encode()  # Plain Unicode: no surrogate is left.


def test_equal_folder_names_are_told_apart(tmp_path):
    put(tmp_path, "x/images/1.jpg", "y/images/1.jpg")
    folders = [tmp_path / "x/images", tmp_path / "y/images"]
    assert source_names(folders) == ["x/images", "y/images"]
    paths = [source.path for source in list_sources(folders)]
    assert paths == ["x/images/1.jpg", "y/images/1.jpg"]


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"source \(=.*gone\) cannot be read: No such file"):
        list_sources([tmp_path / "gone"])


def test_a_file_is_no_source(tmp_path):
    put(tmp_path, "1.jpg")
    with pytest.raises(ConfigError, match=r"source \(=.*1\.jpg\) is not a folder"):
        list_sources([tmp_path / "1.jpg"])


def test_a_source_without_files_is_refused(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(ConfigError, match="hold no file; give a folder of images"):
        list_sources([tmp_path])


def test_overlapping_sources_are_refused(tmp_path):
    put(tmp_path, "a/1.jpg")
    with pytest.raises(ConfigError, match="overlap; give each folder once"):
        list_sources([tmp_path, tmp_path / "a"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_named(tmp_path):
    put(tmp_path, "a/1.jpg", "b/1.jpg")
    (tmp_path / "a").chmod(0)
    with pytest.raises(ConfigError, match=r"folder \(=.*a\) cannot be read: Permission denied"):
        list_sources([tmp_path])
    (tmp_path / "a").chmod(0o755)
