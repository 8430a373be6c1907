import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from command import without_ray
from crawls import build, chunks_of, contents, job_of
from PIL import Image
from ray_nodes import ENVIRONMENT, family, lose, started_head, started_node

from cluster.screen import IncompleteError
from cluster.shard import build_shards
from cluster.tasks import run_tasks
from pipeline.config import ConfigError
from pipeline.ingest import parts
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.parts import close_sandbox
from pipeline.ingest.stage import ShardProgress

pytestmark = [pytest.mark.ray]

ROOT = Path(__file__).parents[2]
CONFIG = ShardConfig(samples_per_shard=100)
NUM_IMAGES = 560  # Three chunks.


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """560 distinct images of 3 classes, 5 repeats, 4 broken files."""
    folder = tmp_path_factory.mktemp("sources") / "crawl"
    for seed in range(NUM_IMAGES):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)
        sink = io.BytesIO()
        image.save(sink, "PNG" if seed % 5 == 0 else "JPEG")
        path = folder / f"class{seed % 3}" / f"{seed:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue())
        if seed < 5:
            (folder / f"class{seed % 3}" / f"repeat{seed}.jpg").write_bytes(sink.getvalue())
        if seed < 4:
            (folder / "class0" / f"cut{seed}.jpg").write_bytes(sink.getvalue()[: 100 + seed])
    return folder


@pytest.fixture(scope="module")
def expected(crawl, tmp_path_factory):
    """The shards as one process without Ray writes them."""
    out = tmp_path_factory.mktemp("expected") / "out"
    build(crawl, out, CONFIG)
    close_sandbox()
    return contents(out)


def shard(crawl, out, *, resume=False, on_progress=lambda progress: None):
    job = job_of(crawl, out, CONFIG)
    return build_shards(job, resume=resume, address=None, on_progress=on_progress)


@pytest.mark.usefixtures("local_ray")
def test_workers_write_the_bytes_that_one_process_writes(crawl, expected, tmp_path):
    seen: list[ShardProgress] = []
    made = shard(crawl, tmp_path / "out", on_progress=seen.append)
    assert contents(tmp_path / "out") == expected
    assert made.ledger.inputs == 569
    assert (made.ledger.accepted, made.ledger.duplicate) == (NUM_IMAGES, 5)
    assert made.ledger.quarantined == {"truncated": 4}
    ends = {progress.phase: progress for progress in seen}
    assert ends["examine"] == ShardProgress("examine", 569, 569, 565, 4, 0, 0)
    assert ends["write"] == ShardProgress("write", 560, 560, 560, 4, 0, 5)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("phase", ["examine", "plan", "write"])
def test_a_stopped_run_goes_on_to_the_same_bytes(crawl, expected, tmp_path, phase):
    out = tmp_path / "out"

    def stop(progress: ShardProgress) -> None:
        if progress.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(crawl, out, on_progress=stop)
    assert not (out / "manifest.json").exists()
    shard(crawl, out, resume=True)
    assert contents(out) == expected


@pytest.mark.usefixtures("local_ray")
def test_whole_shards_are_kept_on_resume(crawl, expected, tmp_path):
    out = tmp_path / "out"
    shard(crawl, out)
    kept = (out / "shard-000000.tar").stat().st_ino
    (out / "shard-000001.tar").write_bytes(b"half")
    (out / ".shard-000001.tar.1.partial").write_bytes(b"half")
    shard(crawl, out, resume=True)
    assert contents(out) == expected
    assert (out / "shard-000000.tar").stat().st_ino == kept


@pytest.mark.usefixtures("local_ray")
def test_a_part_that_cannot_be_written_is_named(crawl, tmp_path):
    out = tmp_path / "out"
    job = job_of(crawl, out, CONFIG)
    chunk = parts.PartSpec(job.parts, chunks_of(job)[0], CONFIG)
    chunk.table_path.mkdir(parents=True)  # Nobody can write a file there.
    (out / "shard_config.json").write_text(json.dumps(job.settings))
    with pytest.raises(IncompleteError, match=rf"1 of 3 parts failed: crawl {chunk.id} \(IsADir"):
        shard(crawl, out, resume=True)
    assert len(list(job.parts.glob("*.parquet"))) == 3
    assert not list(out.rglob(".*.partial"))


def test_one_chunk_starts_no_ray_and_loads_no_torch(tmp_path):
    """In a process of its own: this one may have a Ray."""
    (tmp_path / "crawl").mkdir()
    Image.effect_noise((64, 64), 50).save(tmp_path / "crawl/1.png")
    script = (
        "import sys; from cluster.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "assert 'ray' not in sys.modules or not sys.modules['ray'].is_initialized(); "
        "assert 'torch' not in sys.modules"
    )
    arguments = ["shard", str(tmp_path / "crawl"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("1 inputs = 1 accepted + 0 quarantined")


@pytest.mark.multiprocess
def test_a_killed_command_goes_on_to_the_same_bytes(crawl, expected, tmp_path):
    out, settings = tmp_path / "out", tmp_path / "shard.yaml"
    settings.write_text("samples_per_shard: 100")
    command = [sys.executable, "-m", "cluster.cli", "shard", str(crawl), "--out", str(out)]
    command += ["--config", str(settings), "--resume", "--json", str(tmp_path / "told.json")]
    environment = without_ray(PYTHONPATH=str(ROOT))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob(".parts/*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, timeout=200)
    assert contents(out) == expected
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["inputs"], told["near_duplicate"]) == (569, 0)
    assert told["sources"]["crawl"]["accepted"] == NUM_IMAGES


@pytest.mark.multiprocess
def test_a_lost_node_costs_no_image(crawl, expected, tmp_path):
    out, settings = tmp_path / "out", tmp_path / "shard.yaml"
    settings.write_text("samples_per_shard: 100")
    with started_head(num_cpus=0) as head, started_node(head), started_node(head) as lost:
        command = [sys.executable, "-m", "cluster.cli", "shard", str(crawl), "--out", str(out)]
        command += ["--config", str(settings), "--address", head.address]
        environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while not family(lost.pid) & _writers(out / ".parts"):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            lose(lost)
            assert process.wait(240) == 0
        finally:
            process.kill()
    assert contents(out) == expected


def _writers(folder):
    """The processes that are writing parts, as their files' names say."""
    return {int(path.name.split(".")[-2].split("-")[-2]) for path in folder.glob(".*.partial")}


@pytest.mark.usefixtures("local_ray")
def test_an_error_of_the_call_itself_is_handed_over_as_it_is():
    def call(item: int) -> int:
        raise ConfigError("source (=x) changed.")

    (done,) = run_tasks(call, [1], retries=1, retry_on=[OSError])
    assert isinstance(done.error, ConfigError)
    assert str(done.error) == "source (=x) changed."


@pytest.mark.usefixtures("local_ray")
def test_a_process_that_dies_once_is_tried_again(tmp_path):
    mark = tmp_path / "died"

    def call(item: int) -> int:
        if item == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    ended = run_tasks(call, range(6), retries=2, retry_on=[OSError])
    assert sorted((done.position, done.result) for done in ended) == [(i, i) for i in range(6)]


@pytest.mark.usefixtures("local_ray")
def test_a_transient_error_is_retried(tmp_path):
    mark = tmp_path / "failed"

    def call(item: int) -> int:
        if not mark.exists():
            mark.touch()
            raise OSError("try again")
        return item

    (done,) = run_tasks(call, [7], retries=2, retry_on=[OSError])
    assert (done.result, done.error) == (7, None)


@pytest.mark.usefixtures("local_ray")
def test_leaving_early_ends_the_tasks(tmp_path):
    def call(item: int) -> int:
        while item:
            (tmp_path / str(item)).touch()
        return item

    with closing(run_tasks(call, [0, 1, 2, 3], retries=0, retry_on=())) as ended:
        assert next(ended).position == 0
    touched = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    time.sleep(0.5)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == touched
    # Free again: the endless ones are gone.
    results = [done.result for done in run_tasks(lambda item: item, [5], retries=0, retry_on=())]
    assert results == [5]
