import hashlib
import pickle
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import fsspec
import pytest

from pipeline.config import ConfigError
from pipeline.remote.fetch import FetchConfig, FetchError, fetch_file, read_bytes
from pipeline.remote.location import is_remote, join
from pipeline.remote.transport import Lap, TransferStats

QUICK = FetchConfig(attempts=4, backoff=0.01, timeout=0.5)
SIZE = 300_000


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch `/a.tar` of the server; returns its bytes and how it went."""

    def fetch(data, config=QUICK, *, known=True):
        target = tmp_path / "a.tar"
        fetched = fetch_file(
            f"{server.url}/a.tar",
            target,
            num_bytes=len(data) if known else None,
            sha256=sha256(data) if known else None,
            config=config,
        )
        assert (fetched.num_bytes, fetched.sha256) == (len(data), sha256(data))
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
        assert target.read_bytes() == data
        return fetched

    return fetch


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("s3://bucket/a.tar", True),
        ("HTTPS://host/a.tar", True),
        ("pipe:cat a.tar", True),  # Not local; refused when it is opened.
        ("data:text/plain,a", True),
        ("/data/a.tar", False),
        ("a.tar", False),
        ("C:\\data\\a.tar", False),
        ("C:/data/a.tar", False),
        ("./a:b.tar", False),
        ("file:///data/a.tar", False),
        ("set/s3://odd", False),
    ],
)
def test_a_scheme_other_than_file_is_remote(location, remote):
    assert is_remote(location) is remote


@pytest.mark.parametrize(
    ("base", "name", "joined"),
    [
        ("/data/set", "a.tar", "/data/set/a.tar"),
        ("set", "parts/a.tar", "set/parts/a.tar"),
        ("file:///data/my%20set", "a.tar", "/data/my set/a.tar"),
        ("/data", "/other/a.tar", "/other/a.tar"),
        ("/data", "s3://bucket/a.tar", "s3://bucket/a.tar"),
        ("s3://bucket/set", "/other/a.tar", "/other/a.tar"),
        ("s3://bucket/set", "a b#1?.tar", "s3://bucket/set/a b#1?.tar"),  # Part of the key.
        ("s3://bucket/set?", "a.tar", "s3://bucket/set?/a.tar"),
        ("s3://bucket/set/", "../more/a.tar", "s3://bucket/more/a.tar"),
        ("https://host/set/?sign=1/2#x", "a.tar", "https://host/set/a.tar"),
        ("https://host/my%20set", "a b#1.tar", "https://host/my%20set/a%20b%231.tar"),
        ("https://host", "a.tar", "https://host/a.tar"),
        ("https://host/set", "../../../a.tar", "https://host/a.tar"),  # Never another host.
        ("s3://bucket/set//", "a.tar", "s3://bucket/set/a.tar"),
        ("s3://bucket/set//more", "a//b.tar", "s3://bucket/set//more/a//b.tar"),
        ("memory://set", "./a.tar", "memory://set/a.tar"),
        ("https://host/set", "http://other/b.tar?v=1", "http://other/b.tar?v=1"),
    ],
)
def test_names_are_found_beside_their_manifest(base, name, joined):
    assert join(base, name) == joined


@pytest.mark.parametrize(
    ("faults", "tries"),
    [
        ([], 1),
        (["503"], 2),
        (["500", "429", "503"], 4),
        (["reset"], 2),
        (["short"], 2),
        (["wrong"], 2),
        (["longer"], 2),
        (["wait"], 2),  # Nothing comes within the timeout.
        (["drip:0.05"], 2),  # 10 kB/s.
        (["404"], 2),
        (["403"], 2),
        (["reset", "no range"], 2),
        (["reset", "416"], 3),
        (["reset", "wrong", "short"], 4),
    ],
)
def test_a_file_arrives_whole_through_faults(server, fetch, faults, tries):
    data = server.put("/a.tar", SIZE, *faults)
    assert fetch(data).tries == tries


@pytest.mark.parametrize("faults", [[], ["reset"], ["503", "reset", "no range"]])
def test_size_and_hash_need_not_be_known(server, fetch, faults):
    data = server.put("/a.tar", SIZE, *faults)
    fetched = fetch(data, known=False)
    assert (fetched.num_bytes, fetched.sha256) == (len(data), sha256(data))


def test_a_broken_transfer_is_resumed_where_it_broke(server, fetch):
    fetch(server.put("/a.tar", SIZE, "reset", "short"))
    assert server.requests == [("/a.tar", 0), ("/a.tar", SIZE // 2), ("/a.tar", SIZE * 3 // 4)]


@pytest.mark.parametrize(
    ("faults", "kind", "message", "num_requests"),
    [
        (["404"] * 9, "missing", r": missing \(HTTP status 404\), after 2 tries. Check the", 2),
        (["410"] * 9, "gone", r": gone \(HTTP status 410\), after 2 tries. The server has", 2),
        (["401"] * 9, "forbidden", r"forbidden \(HTTP status 401\), after 2 tries. Give", 2),
        (["403"] * 9, "forbidden", r"forbidden \(HTTP status 403\), after 2 tries. Give", 2),
        (["503"] * 9, "exhausted", r"status 503, after 4 tries. .* raise attempts", 4),
        (["503:900"], "exhausted", r"503 and asks to wait 900 s, after 1 try\.", 1),
        (["wait"] * 9, "exhausted", r"stalled: 0 bytes in 0.5 s, after 4 tries", 4),
        (["wrong"] * 9, "corrupt", r"has sha256 \w{16}, not \w{16}, after 2 tries", 2),
        (["cut"], "corrupt", r"has 299000 bytes, not 300000, after 2 tries. It is not the", 2),
        (["400"] * 9, "exhausted", r"status 400, after 2 tries", 2),
    ],
)
def test_what_cannot_be_had_is_one_line(server, fetch, faults, kind, message, num_requests):
    data = server.put("/a.tar", SIZE, *faults)
    with pytest.raises(FetchError, match=message) as caught:
        fetch(data)
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{server.url}/a.tar: ")
    assert "\n" not in str(caught.value)
    assert len(server.requests) == num_requests


def test_nothing_is_left_where_a_file_cannot_be_had(server, fetch, tmp_path):
    (tmp_path / "a.tar").write_bytes(b"the old one")
    with pytest.raises(FetchError):
        fetch(server.put("/a.tar", SIZE, *["wrong"] * 9))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the old one"]


def test_a_dead_server_is_exhausted(tmp_path):
    with pytest.raises(FetchError, match=r"http://127.0.0.1:1/a: ClientConnector.*, after 4 tries"):
        fetch_file("http://127.0.0.1:1/a", tmp_path / "a", num_bytes=1, sha256=None, config=QUICK)


def test_a_file_has_a_budget_of_time(server, fetch):
    data = server.put("/a.tar", SIZE, *["wait"] * 9)
    with pytest.raises(FetchError, match="timed out after") as caught:
        fetch(data, FetchConfig(budget=0.3))
    assert caught.value.kind == "exhausted"


def test_retry_after_is_obeyed(server, fetch):
    data = server.put("/a.tar", SIZE, "503:1")
    begun = time.monotonic()
    fetch(data)
    assert time.monotonic() - begun >= 1


def test_retry_after_may_be_a_date(server, fetch):
    date = format_datetime(datetime.now(timezone.utc) + timedelta(hours=1), usegmt=True)
    data = server.put("/a.tar", SIZE, f"429:{date}")
    with pytest.raises(FetchError, match=r"429 and asks to wait (3600|359\d) s, after 1 try"):
        fetch(data)
    fetch(server.put("/a.tar", SIZE, "429:soon", "429:Wed, 21 Oct 2015 07:28:00 GMT"))


def test_secrets_of_a_url_are_not_shown(server, tmp_path):
    url = f"{server.url}/gone.tar?signature=abc".replace("//", "//me:word@")
    with pytest.raises(
        FetchError, match=r"^http://127.0.0.1:\d+/gone.tar: missing \(HTTP status 404\)"
    ):
        fetch_file(url, tmp_path / "a", num_bytes=None, sha256=None, config=QUICK)


def lap_of(seconds, *, first, num_bytes):
    """A request that began `seconds` ago, and got its first bytes after `first`."""
    now = time.monotonic()
    return Lap(now - seconds, now - seconds + first, num_bytes)


@pytest.mark.parametrize(
    ("seconds", "num_bytes", "late"),
    [
        # Usual are 0.1 s until the first byte and 1 MB a second after it.
        (1.1, 1_000_000, False),
        (1.1, 500_000, False),
        (1.1, 100_000, True),  # A tenth of the speed.
        (0.3, 0, False),
        (0.4, 0, True),  # No byte yet.
    ],
)
def test_three_times_slower_than_usual_is_late(seconds, num_bytes, late):
    pace = TransferStats(slow_after=3)
    for _ in range(4):
        pace.finish(lap_of(1.1, first=0.1, num_bytes=1_000_000))
    lap = lap_of(seconds, first=0.1, num_bytes=num_bytes)
    assert not pace.is_late(lap)  # Four transfers do not say what is usual.
    pace.finish(lap_of(1.1, first=0.1, num_bytes=1_000_000))
    assert pace.is_late(lap) is late


def test_one_in_ten_transfers_may_be_raced():
    pace = TransferStats(slow_after=3)
    races = 0
    for _ in range(200):
        pace.finish(lap_of(1.1, first=0.1, num_bytes=1_000_000))
        races += pace.may_race()
    assert 20 <= races <= 22


def test_errors_cross_processes(server, fetch):
    error = FetchError("a: HTTP status 404, after 2 tries.", "missing")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.kind) == (str(error), "missing")


@pytest.mark.parametrize("url", ["ftp://host/a", "data:,a", "pipe:cat a", "simplecache::s3://b/a"])
def test_other_schemes_are_refused(url, tmp_path):
    with pytest.raises(ConfigError, match=r"has scheme \w+, which is none of file, .* s3,"):
        read_bytes(url, QUICK)
    with pytest.raises(ConfigError, match="has scheme"):
        fetch_file(url, tmp_path / "a", num_bytes=None, sha256=None, config=QUICK)


def test_a_missing_package_is_named():
    with pytest.raises(
        ConfigError, match=r"gs://b/a\) needs a .* not installed: pip install gcsfs"
    ):
        read_bytes("gs://b/a", QUICK)


def test_small_files_are_read_from_anywhere(server, tmp_path):
    data = server.put("/manifest.json", 1000)
    (tmp_path / "a b").write_bytes(data)
    fsspec.filesystem("memory").pipe_file("/set/manifest.json", data)
    for url in (
        f"{server.url}/manifest.json?v=1",
        str(tmp_path / "a b"),
        (tmp_path / "a b").as_uri(),
        "memory://set/manifest.json",
    ):
        assert read_bytes(url, QUICK) == data
    with pytest.raises(FileNotFoundError):
        read_bytes(str(tmp_path / "gone"), QUICK)
    with pytest.raises(FetchError, match="memory://set/gone: no such file, after 2 tries"):
        read_bytes("memory://set/gone", QUICK)


def test_fetching_leaves_no_thread(server, fetch):
    before = set(threading.enumerate())
    fetch(server.put("/a.tar", SIZE, "reset"))
    started = [t.name for t in set(threading.enumerate()) - before]
    assert [name for name in started if name.startswith("fetch")] == []
