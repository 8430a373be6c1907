import hashlib
import http.server
import json
import os
import re
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections import Counter, defaultdict, deque
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from foreign_shards import picture, tar_of

from pipeline.remote.cache import CacheConfig, ShardCache
from pipeline.remote.fetch import FetchConfig
from pipeline.remote.location import FileRequest


class FaultServer(http.server.ThreadingHTTPServer):
    """Files over HTTP with Range; `faults[path]` are taken one a request, then all is well."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {}
        self.faults = defaultdict(deque)
        self.requests = []  # (path, first byte asked for)
        self.gate = threading.Event()  # Until it is set, requests with fault "wait" get nothing.
        self.closing = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, path, num_bytes, *faults):
        """Serve random bytes; returns them."""
        self.files[path] = np.random.default_rng(zlib.crc32(path.encode())).bytes(num_bytes)
        self.faults[path] = deque(faults)
        return self.files[path]

    def asked(self):
        """Requests by path."""
        return Counter(path for path, _ in self.requests)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        self.server.requests.append((path, first))
        faults = self.server.faults[path]
        fault, _, value = (faults.popleft() if faults else "").partition(":")
        body = self.server.files.get(path)
        if fault.isdecimal() or body is None:
            return self.refuse(int(fault or 404), {"Retry-After": value} if value else {})
        if fault == "cut":  # For ever: the file on the server itself is short.
            body = self.server.files[path] = body[:-1000]
        if fault == "longer":
            body += b"more"
        if asked and fault != "no range":
            if first >= len(body):
                return self.refuse(416, {"Content-Range": f"bytes */{len(body)}"})
            last = min(int(asked[2] or len(body)), len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            self.send_response(200)
        if fault == "wait":
            self.server.gate.wait(30)
        self.send(body, fault, float(value or 0))

    def do_HEAD(self):
        body = self.server.files.get(unquote(urlsplit(self.path).path))
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()

    def send(self, body, fault, pause):
        if fault == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault not in ("short", "no range"):
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        match fault:
            case "short":
                self.wfile.write(body[: len(body) // 2])
            case "reset":
                self.wfile.write(body[: len(body) // 2])
                time.sleep(0.05)  # Let the first half out; what is queued dies with a reset.
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            case "drip":
                while body and not self.server.closing.wait(pause):
                    self.wfile.write(body[:512])
                    body = body[512:]
            case _:
                self.wfile.write(body)
                return
        self.close_connection = True

    def refuse(self, status, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # Clients that are done with it: losers of races.
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """An HTTP server on the loopback that fails on schedule."""
    with FaultServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.gate.set()
        made.closing.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def put(server):
    """A function (name, size, faults) that serves random bytes; returns what is wanted of them."""

    def put(name, num_bytes=1000, *faults):
        data = server.put(f"/{name}", num_bytes, *faults)
        return FileRequest(f"{server.url}/{name}", num_bytes, hashlib.sha256(data).hexdigest())

    return put


@pytest.fixture
def cache_config(tmp_path):
    """A budget of 2 MB, and little patience."""
    return CacheConfig(
        folder=tmp_path / "cache",
        budget_gb=0.002,
        reserve_gb=0,
        fetch=FetchConfig(attempts=4, backoff=0.01, timeout=1),
    )


@pytest.fixture
def cache(cache_config):
    with ShardCache(cache_config) as made:
        yield made


@pytest.fixture
def get():
    """A function (cache, wanted) that gets a file and checks that it is the right one."""

    def get(cache, wanted):
        pin = cache.get(wanted.url, num_bytes=wanted.num_bytes, sha256=wanted.sha256)
        assert hashlib.sha256(pin.path.read_bytes()).hexdigest() == wanted.sha256
        return pin

    return get


@pytest.fixture
def names():
    """A function (folder) that lists the readable part of the names of the cached files."""

    def names(folder):
        return sorted(path.name.partition("-")[2] for path in folder.glob("*-*"))

    return names


@pytest.fixture
def wait_for():
    """A function that waits until a condition holds."""

    def wait_for(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)

    return wait_for


@pytest.fixture
def crawl(tmp_path):
    """Three shards of 5 samples with names as labels, as img2dataset lays them out."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    for number, names in enumerate(["ab", "bc", "ca"]):
        members = []
        for i in range(5):
            key = f"{number:05}{i:04}"
            about = {"caption": 'a "label"', "width": 30, "label": names[i % 2]}
            members += [
                (f"{key}.jpg", picture(10 * number + i)),
                (f"{key}.json", json.dumps(about).encode()),
                (f"{key}.txt", b"a caption"),
            ]
        tar_of(members, folder / f"{number:05}.tar")
        (folder / f"{number:05}.parquet").write_bytes(b"PAR1")
        (folder / f"{number:05}_stats.json").write_text("{}")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB; skips where this process may mount none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tessera-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
