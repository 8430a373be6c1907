import functools
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from command import started
from PIL import Image

from cluster.tasks import run_on_ray
from pipeline.shards.damage import DamageError
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import index_shards, run_here

ROOT = Path(__file__).parents[2]
NUM_SHARDS = 6


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture
def theirs(tmp_path):
    """Six shards of two images each, with names of classes, and a sample without an image."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for number in range(NUM_SHARDS):
        members = [("note.txt", b"")]
        for key in ("a", "b"):
            label = json.dumps({"label": f"{key}{number % 4}"}).encode()
            members += [(f"{key}.jpg", picture(number)), (f"{key}.json", label)]
        with tarfile.open(folder / f"{number:02}.tar", "w") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return folder


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


tessera = functools.partial(started, "index")


def index(inputs, out, run, **options):
    options = {"fast": False, "skip_damaged": False, "on_progress": lambda *_: None, **options}
    return index_shards([str(text) for text in inputs], out, run, **options)


@pytest.mark.multiprocess
def test_the_command_writes_a_manifest_and_says_where_everything_went(theirs, tmp_path):
    out, result_file = tmp_path / "out", tmp_path / "result.json"
    pattern = f"{theirs}/{{00..{NUM_SHARDS - 1:02}}}.tar"
    result = tessera(pattern, "--out", out, "--json", result_file)
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last == "18 inputs = 12 accepted + 6 quarantined (no_image 6) + 0 filtered + 0 duplicate"
    summary = json.loads(result_file.read_text())
    assert summary.pop("seconds") > 0
    assert summary.pop("members_per_s") > 0
    assert summary == {
        "shards": 6,
        "damaged": 0,
        "scanned": 6,
        "samples": 12,
        "inputs": 18,
        "quarantined": {"no_image": 6},
        "members": 30,
        "notes_dropped": {},
    }
    assert read_manifest(out).config == {"indexed": [pattern], "fast": False}
    samples = Store(out).read(np.arange(12))
    assert [p.tobytes() for p in samples.payloads] == [picture(n // 2) for n in range(12)]


@pytest.mark.multiprocess
def test_a_damaged_shard_ends_the_command_with_one_line_and_is_left_out_on_demand(theirs, tmp_path):
    out = tmp_path / "out"
    for number in (1, 3):
        path = theirs / f"{number:02}.tar"
        path.write_bytes(path.read_bytes()[:1500])
    result = tessera(theirs, "--out", out)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "2 of 6 shards are damaged" in result.stderr
    for number in (1, 3):
        assert f"shard (={theirs}/{number:02}.tar) is damaged at byte" in result.stderr
    assert not (out / "manifest.json").exists()
    result = tessera(theirs, "--out", out, "--skip-damaged", "--fast")
    assert result.returncode == 0, result.stderr
    assert "2 damaged shards are excluded" in result.stdout
    rows = list(map(json.loads, (out / "ledger.jsonl").read_text().splitlines()))
    assert [row["verdict"] for row in rows].count("damaged") == 2
    assert len(read_manifest(out).shards) == 4


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.tar"], "nowhere.tar"),
        (["{0..9"], "braces"),
        (["pipe:cat x"], "scheme"),
        (["s3x://bucket/0.tar"], "scheme"),
    ],
)
def test_a_bad_input_is_one_line(tmp_path, arguments, words):
    result = tessera(*arguments, "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.multiprocess
def test_help_has_an_example():
    assert "Example: tessera index" in tessera("--help").stdout


@pytest.mark.multiprocess
def test_small_sets_start_neither_ray_nor_torch(theirs, tmp_path):
    code = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from cluster.index import run_index\n"
        "options = dict(fast=False, skip_damaged=False)\n"
        "run_index([sys.argv[1]], Path(sys.argv[2]), Console(), **options)\n"
        "assert not {'ray', 'torch', 'nvidia'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, theirs, tmp_path / "out"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def server(theirs):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=theirs)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_shards_over_http_are_scanned_once(theirs, server, tmp_path):
    out = tmp_path / "out"
    inputs = [f"{server}/{{00..05}}.tar"]
    first = index(inputs, out, run_here)
    assert first.manifest.shards[0].name == f"{server}/00.tar"
    assert first.num_scanned == 6
    assert index(inputs, out, run_here).num_scanned == 0
    (theirs / "00.tar").write_bytes((theirs / "01.tar").read_bytes() + bytes(10240))
    assert index(inputs, out, run_here).num_scanned == 1
    local = index([theirs], tmp_path / "local", run_here).manifest
    assert local.fingerprint == read_manifest(out).fingerprint


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_workers_write_the_bytes_that_one_process_writes(theirs, tmp_path):
    index([theirs], tmp_path / "ray", run_on_ray)
    index([theirs], tmp_path / "here", run_here)
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert index([theirs], tmp_path / "ray", run_on_ray).num_scanned == 0


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_damage_found_by_workers_is_named_in_order(theirs, tmp_path):
    for number in (4, 2):
        (theirs / f"{number:02}.tar").write_bytes(b"")
    with pytest.raises(DamageError) as caught:
        index([theirs], tmp_path / "out", run_on_ray)
    assert str(caught.value).index("02.tar") < str(caught.value).index("04.tar")
    made = index([theirs], tmp_path / "out", run_on_ray, skip_damaged=True)
    assert (made.num_damaged, made.num_scanned) == (2, 0)  # The others were scanned before.
