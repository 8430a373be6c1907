import os
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from command import ROOT, refused, tessera

from cluster import jobs
from pipeline.config import ConfigError

CONFIG = ROOT / "configs" / "demo" / "pretrain.yaml"
SECONDS = 30


@contextmanager
def served(answer, status=200):
    """A server on loopback that answers every request alike; yields its address and requests."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def raw_server(answer):
    """A server that speaks no HTTP: GCS's port closes the connection, others say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve():
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return
                if answer is not None:
                    kept[-1].sendall(answer)
                    kept.pop().close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()
        thread.join()


def submit(address):
    started = time.monotonic()
    result = tessera("submit", CONFIG, "--address", address)
    assert time.monotonic() - started < SECONDS
    return result


@pytest.mark.parametrize("answer", [b"\x00\x00\x12\x04\x00", b"", None])
def test_a_port_of_ray_that_is_no_dashboard_is_one_line(answer):
    with raw_server(answer) as address:
        assert refused(submit(address), address, "8265" if answer is not None else "ray start")


def test_a_web_server_that_is_no_dashboard_is_one_line():
    with served(b"<html>") as (address, _):
        assert refused(submit(address), address, "no dashboard of Ray")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto"])
def test_an_address_of_another_kind_is_one_line(address):
    assert refused(submit(address), f"address (={address})", "http://127.0.0.1:8265")


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_wanted_is_one_line(status, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with served(b"Unauthorized: Missing authentication token", status) as (address, _):
        assert refused(submit(address), address, "wants a token", "RAY_AUTH_MODE=token")


def test_ray_address_does_not_override_the_one_that_is_given(monkeypatch):
    with served(b'{"ray_version": "2.60.0"}') as (right, asked), served(b"{}") as (wrong, others):
        monkeypatch.setenv("RAY_ADDRESS", wrong)
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", wrong)
        assert jobs.connect(jobs.address_of(right))._address == right
        assert asked
        assert not others
        assert os.environ["RAY_ADDRESS"] == wrong
        assert jobs.address_of(None) == wrong
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert jobs.address_of(None) == jobs.DASHBOARD


def test_what_is_sent_is_our_packages_and_nothing_beside_them(tmp_path):
    for name in ("cluster/a.py", "pipeline/b/c.py", "training/d.py", "crawl/0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "cluster/__pycache__").mkdir()
    (tmp_path / "cluster/__pycache__/a.pyc").write_bytes(b"x")
    sent = [path.as_posix() for path in jobs._files_sent(tmp_path)]
    assert sent == ["cluster/a.py", "pipeline/b/c.py", "training/d.py"]


def test_too_much_to_send_names_the_largest_folders(tmp_path):
    for name, size in (("pipeline/data", 90), ("cluster/old", 30), ("training/models", 1)):
        (tmp_path / name).mkdir(parents=True)
        with (tmp_path / name / "file").open("wb") as file:
            file.truncate(size * 2**20)
    words = r"\(=127 MB\) exceeds the 105 MB .* pipeline/data 94 MB, cluster/old 31 MB"
    with pytest.raises(ConfigError, match=words):
        jobs._files_sent(tmp_path)


class FlakyClient:
    """Ray's client, whose streams end early, and whose head may be lost."""

    def __init__(self, text, cuts, lost=False):
        self.text, self.cuts, self.lost = text, list(cuts), lost

    async def tail_job_logs(self, job):
        cut = self.cuts.pop(0)
        for start in range(0, cut, 7):
            yield self.text[start : min(start + 7, cut)]
        if self.cuts:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, job):
        if self.lost:
            raise ConnectionError("refused")
        ended = not self.cuts
        status = SimpleNamespace(value="FAILED", is_terminal=lambda: ended)
        return SimpleNamespace(status=status, driver_exit_code=7)

    def get_job_logs(self, job):
        return self.text


class Sink:
    def __init__(self):
        self.text = ""

    def out(self, text, end, highlight):
        self.text += text

    def print(self, text):
        self.text += f"<{text}>"


@pytest.fixture
def _hurried(monkeypatch):
    for name in ("_POLL_SECONDS", "_PATIENCE_SECONDS"):
        monkeypatch.setattr(jobs, name, 0.05)


@pytest.mark.usefixtures("_hurried")
@pytest.mark.parametrize("cuts", [(0, 10, 33, 40), (29, 29, 12), (57,), (0,)])
def test_a_log_that_breaks_goes_on_where_it_broke(cuts):
    text, sink = "".join(f"line {n}\n" for n in range(8)), Sink()
    assert jobs.follow(FlakyClient(text, cuts), "http://head", "job", sink) == 7
    assert sink.text == text + "<job job: FAILED>"


@pytest.mark.usefixtures("_hurried")
def test_a_lost_head_is_one_line():
    client = FlakyClient("line\n", (5, 5, 5), lost=True)
    with pytest.raises(ConfigError, match="no longer answers; job raysubmit_1 may go on"):
        jobs.follow(client, "http://head", "raysubmit_1", Sink())
