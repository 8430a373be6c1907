import threading
import time

import pytest

from pipeline.remote.cache import ShardCache
from pipeline.remote.fetch import FetchConfig, FetchError


def test_wishes_are_fetched_in_order_and_then_hits(cache_config, put, server, get, names, wait_for):
    wishes = [put(name) for name in "dacbe"]
    with ShardCache(cache_config.model_copy(update={"fetch": FetchConfig(parallel=1)})) as cache:
        cache.prefetch(wishes)
        wait_for(lambda: len(names(cache_config.folder)) == 5)
        assert [path for path, _ in server.requests] == ["/d", "/a", "/c", "/b", "/e"]
        for wanted in wishes:
            get(cache, wanted)
        assert (cache.stats().hits, cache.stats().misses) == (5, 0)


def test_a_new_list_of_wishes_replaces_the_old_one(cache_config, put, server, names, wait_for):
    first, never, next_ = put("first", 1000, "wait"), put("never"), put("next")
    one = cache_config.model_copy(
        update={"fetch": FetchConfig(parallel=1, timeout=30, backoff=0.01)}
    )
    with ShardCache(one) as cache:
        cache.prefetch([first, never])
        wait_for(lambda: server.requests)
        cache.prefetch([next_])
        server.gate.set()
        wait_for(lambda: len(names(cache_config.folder)) == 2)
    assert names(cache_config.folder) == ["first", "next"]
    assert "/never" not in server.asked()


def test_a_file_on_its_way_is_waited_for(cache_config, put, server, get, wait_for):
    wanted = put("a", 1000, "wait")
    with ShardCache(cache_config.model_copy(update={"fetch": FetchConfig()})) as cache:
        cache.prefetch([wanted])
        wait_for(lambda: server.requests)
        threading.Timer(0.2, server.gate.set).start()
        get(cache, wanted)
        assert (cache.stats().waits, len(server.requests)) == (1, 1)


def test_what_fails_ahead_is_raised_by_get(cache_config, put, server, get, names, wait_for):
    gone, good = put("gone", 1000, *["404"] * 99), put("good")
    with ShardCache(cache_config) as cache:
        cache.prefetch([gone, good])
        wait_for(lambda: names(cache_config.folder) == ["good"] and len(server.requests) == 3)
        with pytest.raises(FetchError, match="HTTP status 404"):
            get(cache, gone)
        assert put("gone") == gone  # The server has found it.
        get(cache, gone)


def test_a_download_that_pauses_lets_another_one_run(cache_config, put, server, names, wait_for):
    wishes = [put("a", 1000, "503:1"), put("b"), put("c")]
    with ShardCache(cache_config.model_copy(update={"fetch": FetchConfig(parallel=1)})) as cache:
        cache.prefetch(wishes)
        wait_for(lambda: len(names(cache_config.folder)) == 3)
    assert [path for path, _ in server.requests] == ["/a", "/b", "/c", "/a"]


def test_fetching_ahead_does_not_evict_what_is_still_wished_for(
    cache_config, put, server, get, names, wait_for
):
    wishes = [put(name, 900_000) for name in "abcd"]
    with ShardCache(cache_config) as cache:
        cache.prefetch(wishes)
        wait_for(lambda: names(cache_config.folder) == ["a", "b"])
        time.sleep(0.7)  # Long enough for another look.
        assert names(cache_config.folder) == ["a", "b"]
        for wanted in wishes:
            get(cache, wanted).release()
        assert max(server.asked().values()) == 1


def test_what_is_asked_for_goes_before_what_is_wished_for(
    cache_config, cache, put, get, names, wait_for
):
    a, b, c = (put(name, 900_000) for name in "abc")
    cache.prefetch([a, b])
    wait_for(lambda: names(cache_config.folder) == ["a", "b"])
    get(cache, c)
    assert "c" in names(cache_config.folder)


def test_a_late_transfer_is_raced_by_a_second_one(cache_config, put, server, get):
    with ShardCache(cache_config.model_copy(update={"fetch": FetchConfig()})) as cache:
        for number in range(6):  # What is usual.
            get(cache, put(f"{number}"))
        get(cache, put("late", 1000, "wait"))
        assert cache.stats().hedges >= 1  # More where this machine was late itself.
        assert server.asked()["/late"] == 2
        assert cache.stats().retries == 0


def test_threads_that_ask_for_one_file_share_its_transfer(cache, put, server, get):
    wanted = put("a", 300_000)
    threads = [threading.Thread(target=get, args=(cache, wanted)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1


def test_close_leaves_no_thread_file_or_pin(cache_config, put, server, get, wait_for):
    before = {thread for thread in threading.enumerate() if thread.name.startswith("fetch")}
    cache = ShardCache(cache_config.model_copy(update={"fetch": FetchConfig()}))
    get(cache, put("pinned"))
    cache.prefetch([put(name, 1000, "wait") for name in "abcdef"])
    wait_for(lambda: len(server.requests) == 5)
    assert list(cache_config.folder.glob("*.partial"))
    failed = []

    def ask():
        try:
            get(cache, put("asked", 1000, "wait"))
        except RuntimeError as error:
            failed.append(str(error))

    asker = threading.Thread(target=ask)
    asker.start()
    wait_for(lambda: len(server.requests) == 6)
    begun = time.monotonic()
    cache.close()
    cache.close()
    asker.join()
    assert time.monotonic() - begun < 10  # The server answers after 30 s.
    assert failed == ["the cache was closed while waiting for a file"]
    with pytest.raises(RuntimeError, match="the cache is closed"):
        cache.prefetch([])
    assert not list(cache_config.folder.glob("*.partial"))
    after = {thread for thread in threading.enumerate() if thread.name.startswith("fetch")}
    assert after <= before
    with ShardCache(cache_config.model_copy(update={"budget_gb": 1.5e-6})) as small:
        get(small, put("other"))  # Has room only where "pinned" is not.


def test_every_file_arrives_once_and_right_through_many_faults(cache_config, put, server, get):
    faults = ["503", "reset", "short", "wrong", "no range", "429", "longer"]
    wishes = [put(f"{i}", 20_000, *faults[i % 7 :][: i % 3]) for i in range(60)]
    patient = cache_config.fetch.model_copy(update={"attempts": 8})
    with ShardCache(cache_config.model_copy(update={"fetch": patient})) as cache:
        cache.prefetch(wishes)
        for wanted in wishes:
            get(cache, wanted).release()
        assert cache.stats().retries >= 40
    assert set(server.asked()) == {f"/{i}" for i in range(60)}
