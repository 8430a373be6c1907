import io
import os
import signal
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster import build_shards as stage
from cluster.build_shards import IncompleteError, ShardProgress, build_shards
from cluster.tasks import map_isolated, run_tasks
from pipeline.config import ConfigError
from pipeline.crawl.build import shard_specs, write_shard
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.folder import finish_folder, start_folder
from pipeline.crawl.gate import Verdict, examine
from pipeline.crawl.plan import Examined, make_plan
from pipeline.crawl.sources import list_sources

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

CONFIG = ShardConfig(samples_per_shard=40)
NUM_IMAGES = 150  # Three chunks of the first phase.


@pytest.fixture(scope="module")
def crawl(tmp_path_factory):
    """150 distinct images of 3 classes, 5 repeats, 4 broken files."""
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
    out = tmp_path_factory.mktemp("expected")
    inputs = reversed(list_sources([crawl]))
    plan = make_plan([Examined(s, examine(s.file, CONFIG)) for s in inputs], CONFIG)
    specs = shard_specs(plan, out, CONFIG)
    start_folder(out, [crawl], CONFIG, specs)
    finish_folder(out, [crawl], CONFIG, plan, [write_shard(spec) for spec in specs])
    return contents(out)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def ignore(progress: ShardProgress) -> None:
    pass


def test_workers_write_the_bytes_that_one_process_writes(crawl, expected, tmp_path):
    seen: list[ShardProgress] = []
    made = build_shards([crawl], tmp_path / "out", CONFIG, resume=False, on_progress=seen.append)
    assert contents(tmp_path / "out") == expected
    assert made.ledger.inputs == 159
    assert (made.ledger.accepted, made.ledger.duplicate) == (NUM_IMAGES, 5)
    assert made.ledger.quarantined == {"truncated": 4}
    ends = {progress.phase: progress for progress in seen}
    assert ends["examine"] == ShardProgress("examine", 159, 159, 150, 4, 0, 5)
    assert ends["write"] == ShardProgress("write", 150, 150, 150, 4, 0, 5)


@pytest.mark.parametrize("phase", ["examine", "write"])
def test_a_stopped_run_goes_on_to_the_same_bytes(crawl, expected, tmp_path, phase):
    out = tmp_path / "out"

    def stop(progress: ShardProgress) -> None:
        if progress.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_shards([crawl], out, CONFIG, resume=False, on_progress=stop)
    assert not (out / "manifest.json").exists()
    build_shards([crawl], out, CONFIG, resume=True, on_progress=ignore)
    assert contents(out) == expected


def test_whole_shards_are_kept_on_resume(crawl, expected, tmp_path):
    out = tmp_path / "out"
    build_shards([crawl], out, CONFIG, resume=False, on_progress=ignore)
    kept = (out / "shard-000000.tar").stat().st_ino
    (out / "shard-000001.tar").write_bytes(b"half")
    (out / ".shard-000001.tar.1.partial").write_bytes(b"half")
    build_shards([crawl], out, CONFIG, resume=True, on_progress=ignore)
    assert contents(out) == expected
    assert (out / "shard-000000.tar").stat().st_ino == kept


def test_nothing_usable_leaves_no_folder(tmp_path):
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl/a.jpg").write_bytes(b"<html>")
    with pytest.raises(ConfigError, match="0 usable of 1 images: 1 not_image"):
        build_shards(
            [tmp_path / "crawl"], tmp_path / "out", CONFIG, resume=False, on_progress=ignore
        )
    assert not (tmp_path / "out").exists()


def test_failed_shards_are_named_and_the_others_kept(crawl, tmp_path):
    out = tmp_path / "out"
    (out / "shard-000002.parquet").mkdir(parents=True)  # Nobody can write a file there.
    plan = make_plan([Examined(s, examine(s.file, CONFIG)) for s in list_sources([crawl])], CONFIG)
    with pytest.raises(
        IncompleteError, match=r"1 of 4 shards failed: shard-000002 \(IsADir.*--resume"
    ):
        stage._write_all(shard_specs(plan, out, CONFIG), plan.ledger, ignore)
    assert (out / "shard-000003.tar").exists()
    assert not list(out.glob(".*"))


def test_a_file_that_crashes_the_decoder_is_quarantined_alone(crawl):
    inputs = list_sources([crawl])
    fatal = inputs[40].file

    def judge(file: str) -> Verdict:
        if file == fatal:
            os.kill(os.getpid(), signal.SIGSEGV)
        return examine(file, CONFIG)

    plan = make_plan(stage._examine_all(inputs, judge, ignore), CONFIG)
    assert plan.ledger.inputs == 159
    assert plan.ledger.quarantined == {"decoder_crash": 1, "truncated": 4}


def test_only_the_item_that_ends_its_process_is_lost():
    fatal = {13, 70}

    def call(item: int) -> int:
        if item in fatal:
            os.kill(os.getpid(), signal.SIGSEGV)
        return item * item

    results = dict(map_isolated(call, range(100), chunk_size=10))
    assert results == {item: None if item in fatal else item * item for item in range(100)}


def test_a_process_that_dies_once_is_tried_again(tmp_path):
    mark = tmp_path / "died"

    def call(item: int) -> int:
        if item == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert sorted(map_isolated(call, range(6), chunk_size=2)) == [(i, i) for i in range(6)]


def test_an_error_of_the_call_itself_is_raised_as_it_is():
    def call(item: int) -> int:
        raise ConfigError("source (=x) changed.")

    with pytest.raises(ConfigError, match=r"^source \(=x\) changed\.$"):
        list(map_isolated(call, range(3), chunk_size=2))


def test_a_transient_error_is_retried(tmp_path):
    mark = tmp_path / "failed"

    def call(item: int) -> int:
        if not mark.exists():
            mark.touch()
            raise OSError("try again")
        return item

    (done,) = run_tasks(call, [7], retries=2, retry_on=[OSError])
    assert (done.result, done.error) == (7, None)


def test_leaving_early_ends_the_tasks(tmp_path):
    def call(item: int) -> int:
        while item:
            (tmp_path / str(item)).touch()
        return item

    with closing(run_tasks(call, [0, 1, 2, 3], retries=0, retry_on=())) as ended:
        assert next(ended).position == 0
    # Free again: the endless ones are gone.
    results = [done.result for done in run_tasks(lambda item: item, [5], retries=0, retry_on=())]
    assert results == [5]
