import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from children import children

from pipeline.loading.piped import open_shard
from pipeline.shards.tar import ShardError


@pytest.fixture(scope="module")
def server(shards):
    """Root of a server on loopback: shards by name; a name that begins with `cut-` stops early."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.lstrip("/").partition("?")[0]
            path = shards / name.removeprefix("cut-")
            if not path.is_file():
                return self.send_error(404)
            data = path.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: 100_000 if name.startswith("cut-") else None])

        def log_message(self, *_):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture(scope="module")
def tar(shards):
    return sorted(shards.glob("*.tar"))[0]


def read(url):
    with open_shard(url) as stream:
        return stream.read()


@pytest.mark.parametrize(
    "url",
    ["{tar}", "file://{tar}", "pipe:cat {tar}", "pipe:cat {tar} | cat", "{root}/{tar.name}?a=b"],
)
def test_bytes_are_the_same_by_every_way(tar, server, url):
    assert read(url.format(tar=tar, root=server)) == tar.read_bytes()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:exit 4", "the command failed with exit status 4."),
        ("pipe:cat {tar}; exit 5", "the command failed with exit status 5."),
        ("pipe:kill -9 $$", "the command failed with exit status -9."),
        ("pipe:no-such-command", "the command failed with exit status 127."),
        (
            "{root}/none.tar",
            "curl failed with exit status 22: the server refused, by a status of 400 or more.",
        ),
        ("{root}/cut-{tar.name}", "curl failed with exit status 18: the transfer was cut."),
        (
            "http://127.0.0.1:9/x.tar",
            "curl failed with exit status 7: the server cannot be reached.",
        ),
    ],
)
def test_a_command_that_fails_says_why(tar, server, url, message):
    with pytest.raises(ShardError) as caught:
        read(url.format(tar=tar, root=server))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("pipe:head -c 9 /dev/zero; exit 6", "the command failed with exit status 6"),
        ("pipe:head -c 9 /dev/zero", "mine"),
        ("pipe:yes", "mine"),  # Runs on: the tar is to blame.
    ],
)
def test_a_failed_command_explains_a_cut_tar(url, message):
    def read_a_cut_tar():
        with open_shard(url) as stream:
            stream.read(9)
            raise ShardError("mine")

    with pytest.raises(ShardError, match=message):
        read_a_cut_tar()


def test_commands_do_not_read_our_standard_input():
    ours, sent = os.pipe()
    saved = os.dup(0)
    os.write(sent, b"x")
    os.dup2(ours, 0)
    try:
        assert read("pipe:head -c 1") == b""
    finally:
        os.dup2(saved, 0)
        for handle in (ours, sent, saved):
            os.close(handle)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def are_gone(pids):
    """A process that was killed may take its time."""
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(map(is_running, pids))


@pytest.mark.parametrize("error", [None, ShardError, KeyboardInterrupt, GeneratorExit])
def test_no_process_is_left_behind(tmp_path, error):
    pids, before = tmp_path / "pids", children()
    command = f"(sleep 600 & echo $! >{pids}; echo $$ >>{pids}; cat /dev/zero; wait) | cat"

    def leave_early():
        with open_shard(f"pipe:{command}") as stream:
            stream.read(9)
            started = pids.read_text().split()
            assert len(started) == 2
            assert all(map(is_running, started))
            if error:
                raise error("mine")

    if error:
        with pytest.raises(error, match="mine"):
            leave_early()
    else:
        leave_early()
    assert are_gone(pids.read_text().split())
    assert not children() - before


def test_curl_is_not_left_behind(server, tar):
    before = children()
    with open_shard(f"{server}/{tar.name}") as stream:
        stream.read(9)
        assert children() - before
    assert not children() - before
