import hashlib
import hmac
import http.server
import io
import logging
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command import tessera
from crawl_inputs import JPEG, chunks_of, items_of, pairs, tar_with
from foreign_shards import tar_bytes
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_images import encoded, photo

from pipeline.config import ConfigError
from pipeline.ingest.sources import files as opened
from pipeline.remote.cache import ShardCache
from pipeline.remote.fetch import FetchConfig, FetchError, read_bytes
from pipeline.remote.location import redact_text, redact_url
from pipeline.shards.third_party.listing import ask_filesystem

QUICK = FetchConfig(attempts=2, backoff=0.01, timeout=5)
SECRET = "sEcReT"
ODD = f"/set%2Fa/it's%27{{0}}.tar?who=%2f%2F+'&at=a::b&path=/x//y&key={SECRET}"


class SigningServer(http.server.ThreadingHTTPServer):
    """Gives `body` to a request whose raw target ends with the signature of all before it.

    A target below /hop is redirected to a signed one, and /status/N is refused by status N.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = b""
        self.hop = ""  # Target that a hop leads to.
        self.targets = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


def signature(target):
    return hmac.new(b"key", target.encode("latin-1"), hashlib.sha256).hexdigest()


def signed(target):
    return f"{target}&sig={signature(target)}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        target = self.raw_requestline.decode("latin-1").split(" ")[1]
        self.server.targets.append(target)
        if target.startswith("/hop"):
            return self.answer(302, b"", Location=self.server.hop)
        if target.startswith("/status/"):
            return self.answer(int(target[8:11]), b"")
        plain, _, sign = target.rpartition("&sig=")
        if sign != signature(plain) or self.command != "GET":  # As a store signs one method.
            return self.answer(403, b"")
        found = self.headers.get("Range")
        if not found:
            return self.answer(200, self.server.body)
        first, last = (int(text) for text in found[6:].split("-"))
        size = len(self.server.body)
        piece = self.server.body[first : last + 1]
        return self.answer(206, piece, **{"Content-Range": f"bytes {first}-{last}/{size}"})

    do_HEAD = do_GET  # noqa: N815 - http.server's name.

    def answer(self, status, body, **headers):
        self.send_response(status)
        more = {"Content-Length": str(len(body)), "Accept-Ranges": "bytes", **headers}
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # Of a client that has seen enough.
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def signing():
    with SigningServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _start_afresh(monkeypatch, signing):
    signing.targets.clear()
    monkeypatch.setattr(opened, "_FETCH", QUICK)


def hop_to(server, target, address="{url}{target}"):
    """Let a hop lead to a signed target, and forget what was asked for; returns the hop's URL."""
    server.hop = address.format(url=server.url, target=target, port=server.server_port)
    server.targets.clear()
    return f"{server.url}/hop%2F{ODD[1:]}"


letters = "".join(map(chr, range(0x21, 0x7F))).replace("#", "")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.text(letters.replace("?", ""), max_size=20),
    query=st.text(letters, max_size=20),
    address=st.sampled_from(["{url}{target}", "{target}", "//127.0.0.1:{port}{target}"]),
)
@example("%2F%2f%27'%zz%", "a=%2f+%20&b=::&c='\"<>\\^`{|}", "{url}{target}")
@example("a/../b/./c", "", "{target}")
def test_a_url_is_sent_as_given_on_every_hop(signing, path, query, address):
    signing.body = b"content"
    target = signed(f"/p{path}?{query}")
    for url in (f"{signing.url}{target}", hop_to(signing, target, address)):
        signing.targets.clear()
        assert read_bytes(url, QUICK) == b"content"
        assert signing.targets == [url.removeprefix(signing.url), target][url.endswith(target) :]


def test_what_no_request_may_hold_is_escaped(signing):
    signing.body = b"content"
    url = f"{signing.url}{signed('/a%20b%C3%BC?c')}"
    assert read_bytes(url.replace("%20", " ").replace("%C3%BC", "ü"), QUICK) == b"content"


@pytest.mark.parametrize("hops", [False, True])
def test_signed_urls_are_sources(signing, hops):
    signing.body = tar_with([("1.jpg", JPEG)])
    target = signed(ODD)
    url = hop_to(signing, target) if hops else signing.url + target
    assert [what for _, what in pairs(items_of(url))] == [JPEG]
    assert target in signing.targets
    assert set(signing.targets) <= {target, url.removeprefix(signing.url)}


@pytest.mark.parametrize("hops", [False, True])
def test_signed_tables_are_sources(signing, hops):
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [JPEG, JPEG + b"2"]}), sink)
    signing.body = sink.getvalue()
    target = signed(ODD.replace(".tar", ".parquet"))
    url = signing.url + target
    if hops:
        url = hop_to(signing, target).replace(".tar", ".parquet")
    assert [what for _, what in pairs(items_of(url))] == [JPEG, JPEG + b"2"]
    assert set(signing.targets) <= {target, url.removeprefix(signing.url)}


def test_signed_shards_are_cached_for_training(signing, cache_config):
    signing.body = bytes(1000)
    with ShardCache(cache_config) as cache:
        url = hop_to(signing, signed(ODD))
        with cache.get(url, num_bytes=1000, sha256=None) as file:
            assert file.path.read_bytes() == signing.body
    kept = [path for path in cache_config.folder.rglob("*") if path.is_file()]
    assert not [
        path for path in kept if SECRET in path.name or SECRET.encode() in path.read_bytes()
    ]


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (401, r"forbidden \(HTTP status 401\)", "forbidden"),
        (403, r"forbidden \(HTTP status 403\)", "forbidden"),
        (404, r"missing \(HTTP status 404\)", "missing"),
        (410, r"gone \(HTTP status 410\)", "gone"),
        (418, "HTTP status 418", "exhausted"),
    ],
)
@pytest.mark.parametrize("hops", [False, True])
def test_a_refusal_is_called_by_its_name_and_keeps_the_secret(signing, status, text, kind, hops):
    target = f"/status/{status}/a.tar?key={SECRET}"
    url = hop_to(signing, target) if hops else signing.url + target
    refused = [
        (FetchError, lambda: read_bytes(url, QUICK)),
        (ConfigError, lambda: chunks_of(url)),
        ((ConfigError, OSError), lambda: ask_filesystem(url, "info")),
    ]
    for error, call in refused:
        with pytest.raises(error, match=text) as caught:
            call()
        assert SECRET not in str(caught.value)
        assert getattr(caught.value, "kind", kind) == kind


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("ftp://h/a", "redirects to ftp:, which is not HTTP"),
        (f"/hop?{SECRET}", "more than 5 redirects"),
        (f"http://h:port/?{SECRET}", r"(ValueError|InvalidURL)"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_one_line(signing, location, text):
    url = hop_to(signing, location, "{target}")
    with pytest.raises(FetchError, match=text) as caught:
        read_bytes(url, QUICK)
    assert SECRET not in str(caught.value)


def test_no_secret_is_left_by_the_commands(signing, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    shown, codes = "", []
    image = encoded(photo(300, 200))
    signing.body = tar_bytes([("a.jpg", image), ("a.cls", b"1"), ("b.jpg", b"no image")])
    url = hop_to(signing, signed(ODD))
    for command in (
        ("shard", url, "--out", tmp_path / "shards"),
        ("inspect", tmp_path / "shards", "--page", tmp_path / "page.html"),
        ("shard", f"{signing.url}/status/403/a.tar?key={SECRET}", "--out", tmp_path / "none"),
        ("index", url, "--out", tmp_path / "index"),
        ("verify", tmp_path / "index"),
        ("inspect", tmp_path / "index", "--page", tmp_path / "index.html"),
    ):
        result = tessera(*command)
        shown += result.output
        codes.append(result.exit_code)
    assert codes == [0, 0, 2, 0, 0, 0]
    assert "2 inputs = 1 accepted + 1 quarantined" in shown
    assert "forbidden (HTTP status 403)" in shown
    assert SECRET not in shown + caplog.text
    leaks = {
        path.relative_to(tmp_path)
        for path in tmp_path.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    }
    # What is indexed stays where it is: its manifest and record must say where.
    assert {str(path) for path in leaks if path.parent.name != "index"} == set()
    assert {path.suffix for path in leaks} == {".json"}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("url='https://me:pw@h/a?sig=1', 403", "url='https://h/a', 403"),
        ("https://h/a@b#frag and HTTP://h?x", "https://h/a@b and HTTP://h"),
        ("no address? none", "no address? none"),
    ],
)
def test_addresses_in_a_text_lose_their_secrets(text, safe):
    assert redact_text(text) == safe


def test_a_command_loses_the_secrets_of_its_addresses():
    url = "pipe:curl -s 'https://h/a.tar?sig=1' | cat"
    assert redact_url(url) == "pipe:curl -s 'https://h/a.tar' | cat"
