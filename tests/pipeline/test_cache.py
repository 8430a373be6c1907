import dataclasses
import errno
import hashlib
import os
import threading
import time

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from pipeline.remote.cache import CacheConfig, ShardCache
from pipeline.remote.fetch import FetchConfig, FetchError
from pipeline.remote.location import FileRequest


def test_a_file_is_fetched_once(cache, put, server, get):
    wanted = put("a.tar")
    with get(cache, wanted) as first, get(cache, wanted) as second:
        assert first.path == second.path
    assert server.requests == [("/a.tar", 0)]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.bytes_fetched) == (1, 1, 1000)


def test_a_new_process_trusts_what_is_recorded(cache_config, put, server, get):
    wanted = put("a.tar")
    with ShardCache(cache_config) as cache:
        get(cache, wanted)
    with ShardCache(cache_config) as cache:
        get(cache, wanted)
        cache.get(wanted.url, num_bytes=None, sha256=None)
        assert cache.stats().hits == 2
    assert len(server.requests) == 1


def test_equal_names_at_different_urls_do_not_collide(cache_config, cache, put, get, names):
    one, two = put("one/0.tar"), put("two/0.tar")
    again = dataclasses.replace(two, url=f"{two.url}?version=2")
    with get(cache, one), get(cache, two), get(cache, again):
        assert names(cache_config.folder) == ["0.tar", "0.tar", "0.tar"]


@pytest.mark.parametrize(
    "name", ["a" * 300, "\u00e4 b/..", "x.json", "y.partial", "%2e%2e", "a?b=/../c", "room.lock"]
)
def test_any_name_is_kept_inside_the_folder(cache_config, cache, name):
    url = f"memory://names{len(name)}/{name}"
    fsspec.filesystem("memory").pipe_file(url, b"data")
    with cache.get(url, num_bytes=4, sha256=None) as pin:
        assert pin.path.parent == cache_config.folder
        assert len(pin.path.name) <= 32 + 1 + 80
        assert pin.path.read_bytes() == b"data"


def flip(path, *, hide):
    """Damage a byte; to hide it, set the time of change back."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(500)
        byte = file.read(1)[0]
        file.seek(500)
        file.write(bytes([byte ^ 4]))
    if hide:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, hide=False),
        lambda path: flip(path, hide=True),
        lambda path: os.truncate(path, 600),
        lambda path: path.write_bytes(b"\0" * 1000),
        lambda path: path.unlink(),
        lambda path: (flip(path, hide=True), record_of(path).unlink()),
        lambda path: (flip(path, hide=True), record_of(path).write_text('{"sha')),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_a_damaged_file_is_fetched_again_and_never_served(
    cache_config, put, server, damage, known, get
):
    wanted = put("a.tar")
    with ShardCache(cache_config) as cache, get(cache, wanted) as pin:
        path = pin.path
    damage(path)
    asked = wanted if known else FileRequest(wanted.url, None, None)
    with ShardCache(cache_config) as cache:
        with cache.get(asked.url, num_bytes=asked.num_bytes, sha256=asked.sha256) as pin:
            assert hashlib.sha256(pin.path.read_bytes()).hexdigest() == wanted.sha256
        assert cache.stats().misses == 1
    assert len(server.requests) == 2


def record_of(path):
    return path.with_name(f"{path.name[:32]}.json")


@pytest.mark.parametrize(
    "touch",
    [
        lambda path: path.touch(),
        lambda path: path.chmod(0o600),
        lambda path: record_of(path).unlink(),
        lambda path: record_of(path).write_text(""),
    ],
)
def test_a_whole_file_with_a_doubtful_record_is_hashed_not_fetched(
    cache_config, put, server, touch, get
):
    wanted = put("a.tar")
    with ShardCache(cache_config) as cache, get(cache, wanted) as pin:
        path = pin.path
    touch(path)
    with ShardCache(cache_config) as cache:
        get(cache, wanted).release()
        assert cache.stats().hits == 1
    with ShardCache(cache_config) as cache, get(cache, wanted) as pin:
        assert record_of(path).stat().st_size > 0
    assert len(server.requests) == 1


def test_another_hash_than_the_cached_one_fetches_again(cache, put, server, get):
    old = put("a.tar")
    get(cache, old).release()
    server.files["/a.tar"] = data = bytes(1000)
    new = FileRequest(old.url, 1000, hashlib.sha256(data).hexdigest())
    get(cache, new).release()
    with pytest.raises(FetchError, match="has sha256"):
        get(cache, old)


def test_what_is_discarded_is_fetched_again(cache_config, cache, put, server, get, names):
    wanted = put("a.tar")
    pin = get(cache, wanted)
    cache.discard(wanted.url)
    assert names(cache_config.folder) == []
    with get(cache, wanted):
        assert len(server.requests) == 2
    pin.release()


def test_only_the_very_file_that_was_served_is_discarded(cache_config, put, server, get):
    wanted = put("a.tar")
    with ShardCache(cache_config) as mine, ShardCache(cache_config) as other:
        get(mine, wanted)
        get(other, wanted)
        other.discard(wanted.url)
        get(other, wanted)  # Fetched again.
        mine.discard(wanted.url)  # Means the old one.
        mine.discard(wanted.url)
        mine.discard("http://never/asked.tar")
        get(mine, wanted)
    assert len(server.requests) == 2


def test_the_least_recently_used_goes_first(cache_config, cache, put, get, names):
    a, b, c, d = (put(name, 600_000) for name in "abcd")
    for wanted in (a, b, c, a):
        get(cache, wanted).release()
    get(cache, d).release()
    assert names(cache_config.folder) == ["a", "c", "d"]
    assert cache.stats().evictions == 1


def test_pinned_files_stay_whoever_pins_them(cache_config, put, get, names):
    a, b, c, d = (put(name, 600_000) for name in "abcd")
    with ShardCache(cache_config) as mine, ShardCache(cache_config) as other:
        get(mine, a)
        get(other, b)
        get(other, c).release()
        with get(other, d):
            assert names(cache_config.folder) == ["a", "b", "d"]


def test_a_budget_filled_by_pinned_files_is_one_line(cache_config, cache, put, get, names):
    a, b = put("a", 1_200_000), put("b", 1_500_000)
    pin = get(cache, a)
    text = (
        r"^budget_gb \(=0.002\) of the cache lacks 0.0007 GB for b of 0.0015 GB beside 1 files in "
        r"use; raise budget_gb.$"
    )
    with pytest.raises(ConfigError, match=text):
        get(cache, b)
    pin.release()
    pin.release()
    get(cache, b)
    assert names(cache_config.folder) == ["b"]


def test_files_that_another_process_uses_are_waited_for(cache_config, put, get):
    a, b = put("a", 1_200_000), put("b", 1_500_000)
    with ShardCache(cache_config) as mine, ShardCache(cache_config) as other:
        pin = get(other, a)
        with pytest.raises(ConfigError, match="beside 1 files in use"):
            get(mine, b)  # After the timeout.
        threading.Timer(0.2, pin.release).start()
        get(mine, b)


def test_downloads_under_way_count_in_every_process(cache_config, put, server, get, wait_for):
    wishes = [put(name, 900_000, "wait") for name in "abc"]
    patient = cache_config.model_copy(update={"fetch": FetchConfig()})
    caches = [ShardCache(patient) for _ in wishes]
    threads = [
        threading.Thread(target=lambda pair: get(*pair).release(), args=(pair,))
        for pair in zip(caches, wishes, strict=True)
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(server.requests) == 2)
    time.sleep(0.3)
    assert len(server.requests) == 2  # There is no room for the third.
    server.gate.set()
    for thread in threads:
        thread.join()
    assert max(server.asked().values()) == 1
    assert sum(cache.stats().evictions for cache in caches) == 1
    for cache in caches:
        cache.close()


@pytest.mark.parametrize("known", [True, False])
def test_a_file_larger_than_the_budget_is_one_line(cache_config, cache, put, known):
    wanted = put("a", 2_000_001)
    with pytest.raises(ConfigError, match=r"budget_gb \(=0.002\) .* beside 0 files in use"):
        cache.get(wanted.url, num_bytes=wanted.num_bytes if known else None, sha256=None)
    assert [path.name for path in cache_config.folder.iterdir()] == ["room.lock"]


def test_a_reserve_of_the_disk_stays_free(cache_config, put, get):
    with (
        ShardCache(cache_config.model_copy(update={"reserve_gb": 1e6})) as cache,
        pytest.raises(
            ConfigError,
            match=r"lacks .* of free disk for a of 1e-06 GB beside reserve_gb \(=1e\+06",
        ),
    ):
        get(cache, put("a"))


def test_a_disk_that_fills_up_meanwhile_is_evicted_from_once(
    cache_config, cache, put, monkeypatch, get, names
):
    a, b = put("a"), put("b")
    get(cache, a).release()
    write, fails = os.pwrite, [True]

    def full(file, data, offset):
        if len(data) == 1000 and fails and fails.pop():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    get(cache, b).release()
    assert names(cache_config.folder) == ["b"]
    fails.extend([True, True])
    with pytest.raises(ConfigError, match=r"folder \(=.*cache\) of the cache .* disk"):
        get(cache, put("c"))


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"folder \(=.*/file\) of the cache cannot be used: "):
        ShardCache(CacheConfig(folder=tmp_path / "file"))


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=25))
def test_the_budget_is_never_exceeded(tmp_path_factory, steps):
    """Steps: which of ten files of 1, 2, ... 10 kB, whether to pin it, whether to release one."""
    files, pins, pinned = fsspec.filesystem("memory"), [], set()
    for number in range(10):
        files.pipe_file(f"/budget/{number}", bytes([number]) * 1000 * (number + 1))
    folder = tmp_path_factory.mktemp("cache")
    with ShardCache(CacheConfig(folder=folder, budget_gb=20e-6, reserve_gb=0)) as cache:
        for number, keep, let_go in steps:
            size = 1000 * (number + 1)
            held = sum(1000 * (n + 1) for n in pinned)
            fits = number in pinned or held + size <= 20_000
            try:
                pin = cache.get(f"memory://budget/{number}", num_bytes=size, sha256=None)
                assert fits
                assert pin.path.read_bytes() == bytes([number]) * size
                if keep:
                    pins.append((number, pin))
                else:
                    pin.release()
            except ConfigError:
                assert not fits
            if let_go and pins:
                pins.pop(0)[1].release()
            pinned = {number for number, _ in pins}
            assert sum(path.stat().st_size for path in folder.glob("*-*")) <= 20_000
