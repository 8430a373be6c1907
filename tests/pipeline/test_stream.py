import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from children import children

from pipeline.config import ConfigError, parse
from pipeline.dali.graph import GraphOptions
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import STOP_AT_DAMAGE
from pipeline.loading.stream import StreamConfig, StreamLoader
from pipeline.loading.unindexed import sample_id
from pipeline.pretext.draws import Draws
from pipeline.pretext.jigsaw import JigsawConfig, plan_jigsaw
from pipeline.reference import tile_views
from pipeline.shards.store import Store
from training.pretrain import train
from training.run import RunConfig, pretraining_of

JIGSAW = JigsawConfig(
    name="jigsaw", crop_px=33, tile_px=9, num_permutations=20, puzzles_per_image=2
)
ORDER = OrderConfig(global_batch=12, num_lanes=6, window=20)  # 16 steps of 198 samples.


def tars(folder):
    return tuple(sorted(map(str, folder.glob("*.tar"))))


def loader_of(urls, *, rank=0, world_size=1, shuffle=0, order=ORDER):
    config = StreamConfig(url=urls, samples_per_epoch=198, shuffle=shuffle)
    rank_info = RankInfo(rank, world_size)
    return StreamLoader(config, order, JIGSAW, seed=0, rank_info=rank_info, policy=STOP_AT_DAMAGE)


def options(max_batch, prefetch=2):
    return GraphOptions(max_batch=max_batch, num_threads=1, device_id=None, prefetch=prefetch)


def take(loader, num, prefetch=2):
    with closing(loader.batches(options(loader.max_batch, prefetch))) as batches:
        return list(islice(batches, num))


def views_of(batches):
    """What each visit of each sample looked like, in order."""
    seen = {}
    for batch in batches:
        for i, view, labels in zip(batch.sample_ids, batch.views, batch.labels, strict=True):
            seen.setdefault(int(i), []).append((view.numpy().tobytes(), tuple(labels)))
    return seen


def test_views_are_those_that_the_exact_loader_plans(shards):
    store, urls = Store(shards), tars(shards)
    shard_names = np.repeat([info.name for info in store.manifest.shards], [66, 66, 66])
    named = zip(shard_names.tolist(), store.keys(), strict=True)
    rows = {sample_id(name, key): row for row, (name, key) in enumerate(named)}
    loader = loader_of(urls)
    for step, batch in enumerate(take(loader, 3)):
        assert (batch.epoch, batch.step) == (0, step)
        samples = store.read(np.array([rows[i] for i in batch.sample_ids.tolist()]))
        draws = Draws(0, 0, batch.sample_ids)
        plan = plan_jigsaw(JIGSAW, samples.heights, samples.widths, draws)
        assert (batch.labels == plan.labels).all()
        expected = tile_views([p.tobytes() for p in samples.payloads], JIGSAW.tiles, plan)
        assert batch.views.shape == (12, 9, 9, 9, 3)
        assert np.abs(batch.views.numpy().astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("world_size", "shuffle", "order", "prefetch"),
    [
        (1, 0, OrderConfig(global_batch=66, num_lanes=1, window=1), 1),
        (1, 300, ORDER, 4),  # The buffer holds more than a pass.
        (2, 7, ORDER, 2),
        (3, 0, ORDER, 2),
    ],
)
def test_the_nth_view_of_a_sample_depends_on_nothing_else(
    shards, world_size, shuffle, order, prefetch
):
    alone = views_of(take(loader_of(tars(shards)), 100))  # Six passes.
    assert len(alone) == 198
    assert all(len(set(seen)) == len(seen) > 5 for seen in alone.values())
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size}
        loader = loader_of(tars(shards), shuffle=shuffle, order=order, **place)
        for i, seen in views_of(take(loader, 360 // order.global_batch, prefetch)).items():
            assert set(seen) <= set(alone[i])


def test_the_buffer_mixes_and_is_repeatable(shards):
    ordered, mixed, again = (
        [i for batch in take(loader_of(tars(shards), shuffle=size), 14) for i in batch.sample_ids]
        for size in (0, 150, 150)
    )
    assert mixed == again
    places = [ordered.index(i) for i in mixed[:12]]
    assert max(places) < 150 + 12
    assert max(places) > 130  # The buffer is full from the start.


def test_an_epoch_is_what_the_config_says(shards):
    loader = loader_of(tars(shards))
    assert (loader.steps_per_epoch, loader.remainder, loader.global_batch) == (16, 6, 12)
    batches = take(loader, 20)
    assert [(b.epoch, b.step) for b in batches] == [(n // 16, n % 16) for n in range(20)]
    assert (loader.state()["epoch"], loader.state()["step"]) == (1, 4)
    assert loader.counters.images == 240
    assert loader.counters.read_s > 0


def test_ranks_have_the_shares_of_the_exact_loader(shards):
    urls = tars(shards)[:1] * 4
    sizes = [loader_of(urls, rank=rank, world_size=4).max_batch for rank in range(4)]
    assert sizes == [4, 4, 2, 2]


def test_a_run_that_goes_on_sees_other_samples_and_says_so(shards, capsys):
    loader = loader_of(tars(shards), shuffle=50)
    before = take(loader, 4)
    assert capsys.readouterr().err == (
        "tessera: data.stream reads in passing: no exact resume, samples may repeat or be left out "
        "within an epoch, another number of ranks changes the order.\n"
    )
    state = json.loads(json.dumps(loader.state()))
    assert len(json.dumps(state)) < 256
    resumed = loader_of(tars(shards), shuffle=50)
    resumed.restore(state)
    after = take(resumed, 16)
    assert capsys.readouterr().err == (
        "tessera: data.stream starts anew at step 4, shuffled by it: samples of this epoch may "
        "come again, others not at all.\n"
    )
    assert [(b.epoch, b.step) for b in after] == [(n // 16, n % 16) for n in range(4, 20)]
    assert after[0].sample_ids.tolist() != before[0].sample_ids.tolist()
    old, new = views_of(before), views_of(after)
    assert len(old.keys() & new.keys()) > 40
    assert not any(set(old[i]) & set(new[i]) for i in old.keys() & new.keys())


def test_only_the_first_rank_speaks(shards, capsys):
    take(loader_of(tars(shards), rank=1, world_size=2), 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "theirs"), [("fingerprint", "0123456789abcdef"), ("seed", 1), ("global_batch", 24)]
)
def test_a_position_in_other_steps_is_refused(shards, key, theirs):
    loader = loader_of(tars(shards))
    state = loader.state()
    with pytest.raises(ConfigError, match=rf"^{key} \(={state[key]}\) differs from the checkpoint"):
        loader.restore({**state, key: theirs})


def test_nothing_is_left_running(shards):
    threads, processes = set(threading.enumerate()), children()
    loader = loader_of(f"pipe:cat {tars(shards)[0]}; sleep 600")
    batches = loader.batches(options(12, prefetch=1))
    next(batches)
    assert children() - processes
    loader.close()
    assert not children() - processes
    batches.close()
    assert not set(threading.enumerate()) - threads


def test_ctrl_c_ends_a_command_that_gives_nothing(shards, tmp_path):
    mark = tmp_path / "pid"
    url = f"pipe:cat {tars(shards)[0]}; echo $$ >{mark}; sleep 600"

    def interrupt():
        while not mark.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    batches = loader_of(url).batches(options(12))
    with pytest.raises(KeyboardInterrupt):
        list(islice(batches, 100))
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


GOOD = {"samples_per_epoch": 24}


@pytest.mark.parametrize(
    ("raw", "world_size", "message"),
    [
        (
            {"url": "s3://bucket/x.tar"},
            1,
            r"scheme s3, which webdataset cannot read: it knows file",
        ),
        ({"url": "none-{0..3}.tar"}, 1, r"url \(=none-0.tar\) is not a file; correct the path\.$"),
        ({"url": "*.tar"}, 1, r"url \(=\*.tar\) is not a file; .* Only braces are expanded"),
        ({"url": "{tmp}"}, 1, r"is a folder; name its tars, as in /.*/\{000..099\}.tar\.$"),
        ({"url": "pipe:cat x"}, 2, r"names 1 shards, fewer than world_size \(=2\)"),
        ({"url": "-"}, 2, r"names 1 shards, fewer than world_size \(=2\)"),
        ({"url": ["-", "pipe:cat x"]}, 1, r"names - and other shards \(=1\)"),
        ({"url": "pipe:cat {0..9}"}, 7, r"world_size \(=7\) exceeds num_lanes \(=6\)"),
        ({"url": "pipe:x", "samples_per_epoch": 11}, 1, r"must be at least global_batch \(=12\)"),
        ({"url": []}, 1, r"url: names no shard"),
        ({"url": ""}, 1, r"url \(=\): names no shard"),
        ({"url": "x{"}, 1, r"url \(=x\{\): Unbalanced braces"),
        ({"url": "pipe:x", "samples_per_epoch": 0}, 1, r"samples_per_epoch \(=0\): Input should"),
        ({"url": "pipe:x", "shuffle": -1}, 1, r"shuffle \(=-1\): Input should"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, raw, world_size, message):
    if raw["url"] == "{tmp}":
        raw = {"url": str(tmp_path)}
    with pytest.raises(ConfigError, match=message) as caught:
        parse(StreamConfig, {**GOOD, **raw}, "run.yaml").check(ORDER, world_size=world_size)
    assert "\n" not in str(caught.value)


def test_braces_are_expanded_and_commands_are_left_alone():
    config = StreamConfig(
        url=("a{0..1}.tar", r"pipe:sed 's/\./x/' | awk '{print $1}'"), samples_per_epoch=1
    )
    assert config.urls == ("a0.tar", "a1.tar", r"pipe:sed 's/\./x/' | awk '{print $1}'")


def test_paths_become_absolute_and_nothing_else():
    urls = ("x/{0..1}.tar", "/y.tar", "file:///z.tar", "pipe:cat x", "http://h/x.tar", "-")
    config = StreamConfig(url=urls, samples_per_epoch=1).absolute()
    here = str(Path.cwd())
    assert config.url == (f"{here}/x/{{0..1}}.tar", "/y.tar", "/z.tar", *urls[3:])


READ_STANDARD_INPUT = """
from cluster.screen import clear_errors
from pipeline.dali.graph import GraphOptions
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import OrderConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.loading.quarantine import STOP_AT_DAMAGE
from pipeline.loading.stream import StreamConfig, StreamLoader

loader = StreamLoader(
    StreamConfig(url="-", samples_per_epoch=1000, shuffle=50),
    OrderConfig(global_batch=12, num_lanes=1, window=1),
    JigsawConfig(name="jigsaw", crop_px=33, tile_px=9, num_permutations=20),
    seed=0, rank_info=RankInfo(0, 1), policy=STOP_AT_DAMAGE,
)
options = GraphOptions(max_batch=12, num_threads=1, device_id=None, prefetch=2)
with clear_errors():
    for batch in loader.batches(options):
        print(batch.step, len(set(batch.sample_ids.tolist())))
"""


@pytest.mark.multiprocess
def test_standard_input_is_read_to_its_end(shards):
    command = [sys.executable, "-c", READ_STANDARD_INPUT]
    with Path(tars(shards)[0]).open("rb") as stdin:
        done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [f"{step} 12" for step in range(5)]  # 66 samples.
    assert done.stderr.splitlines()[1:] == [
        "tessera: data.stream.url (=-) ended at step 5, and standard input cannot be read again: "
        "send more, train less, or name files or a pipe:. Ray's workers have no standard input."
    ]
    assert done.returncode == 2


def test_a_trunk_trains_from_a_stream(shards, tmp_path, capsys):
    raw = {
        "out": tmp_path,
        "seed": 3,
        "data": {"stream": {"url": f"pipe:cat {tars(shards)[0]}", "samples_per_epoch": 64}},
        "trunk": {"name": "small"},
        "order": {"global_batch": 16, "num_lanes": 4, "window": 32},
        "pretext": JIGSAW.model_dump(),
        "optim": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": 1, "precision": "fp32", "log_every": 2, "checkpoint_every": 2},
    }
    train(pretraining_of(parse(RunConfig, raw, "config")))
    assert json.loads((tmp_path / "pretrain.json").read_text())["steps"] == 4
    raw["train"]["epochs"] = 2
    train(pretraining_of(parse(RunConfig, raw, "config")))
    assert json.loads((tmp_path / "pretrain.json").read_text())["steps"] == 8
    assert "data.stream starts anew at step 4" in capsys.readouterr().err
