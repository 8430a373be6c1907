import json
from functools import partial
from pathlib import Path

import pytest
import yaml
from command import tessera
from PIL import Image

from pipeline.config import load
from pipeline.explain.step import explain_step, open_subject
from pipeline.loading.mixture import RankInfo
from pipeline.loading.order import Order
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from training.run import RunConfig, open_run

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "pretrain.yaml"
SMALL = ["order.global_batch=12", "order.num_lanes=6", "order.window=20"]  # 16 steps of 198.


explain = partial(tessera, "explain")


@pytest.fixture
def run(tmp_path, shards):
    """The folder of a run of 16 steps an epoch."""

    def make(**data):
        config = load(RunConfig, CONFIG, [f"out={tmp_path / 'run'}", "seed=5", *SMALL])
        raw = config.model_dump(mode="json")
        raw["data"] = data or {"manifest": str(shards)}
        config = RunConfig.model_validate(raw)
        open_run(config, resume=False)
        return config

    return make


def refused(result, *words):
    """Exit code 2, one line on standard error, and in it what the words say."""
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    return True


def test_a_step_of_a_run_is_listed(run, shards, tmp_path):
    config = run()
    result = explain(config.out, "--epoch", 1, "--step", 3, "--json", tmp_path / "step.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    fingerprint = read_manifest(shards).fingerprint
    assert lines[0] == (
        f"data set {shards}, fingerprint {fingerprint}: epoch 1, step 3, all ranks; "
        "16 steps per epoch, remainder 6 samples"
    )
    assert lines[-1] == (
        "12 samples of step 3 of 16, epoch 1; the same for every number of ranks up to 6"
    )
    assert {len(line) for line in lines[1:-1]} == {100}
    listed = json.loads((tmp_path / "step.json").read_text())
    ids = Order(read_manifest(shards).shard_counts, config.order, seed=5).global_batch(1, 3)
    assert [row["sample_id"] for row in listed["samples"]] == ids.tolist()
    subject = open_subject(config.data, config.order, config.pretext, seed=5)
    explained = explain_step(subject, 1, 3, RankInfo(0, 1))
    same = json.loads(json.dumps({"data": [str(shards)], **explained.listed()}))
    assert listed == same
    for shown in explained.samples:
        top, left, side = shown.draws[0].crop
        assert shown.key in result.stdout
        assert f"at {shown.offset} " in result.stdout
        assert f"crop top {top} left {left} side {side}, " in result.stdout


@pytest.mark.parametrize(
    ("pretext", "words"),
    [
        ("{name: context, patch_px: 12, gap_px: 4, jitter_px: 1, min_pixels: 2000}", ["pairs "]),
        ("{name: rotation, crop_px: 32}", ["turns 0 90 180 270"]),
        (
            "{name: multitask, weights: [1, 1], tasks: [{name: jigsaw, crop_px: 36, tile_px: 9}, "
            "{name: rotation, crop_px: 32}]}",
            ["jigsaw ", "rotation ", "permutations ", "turns 0 90 180 270"],
        ),
    ],
)
def test_every_pretext_is_listed_and_drawn(shards, tmp_path, pretext, words):
    folder, file = tmp_path / "pictures", tmp_path / "step.json"
    raw = yaml.safe_load(CONFIG.read_text()) | {"pretext": yaml.safe_load(pretext)}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    config = ["--config", tmp_path / "run.yaml", *SMALL]
    at = ["--epoch", 0, "--step", 0, "--rank", "0/6", "--save", folder, "--json", file]
    result = explain(shards, *at, *config)
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.stdout
    assert len(list(folder.iterdir())) == 3
    assert len(json.loads(file.read_text())["samples"]) == 2


def test_shards_and_a_config_explain_what_the_run_explains(run, shards, tmp_path):
    by_run, by_config = tmp_path / "a.json", tmp_path / "b.json"
    at = ["--epoch", 0, "--step", 15, "--rank", "1/4"]
    assert explain(run().out, *at, "--json", by_run).exit_code == 0
    other = ["--config", CONFIG, "seed=5", *SMALL]
    result = explain(shards / "manifest.json", *at, *other, "--json", by_config)
    assert result.exit_code == 0, result.output
    one, two = (json.loads(file.read_text()) for file in (by_run, by_config))
    assert one.pop("data") != two.pop("data")
    assert one == two
    assert {row["lane"] for row in one["samples"]} == {1, 5}
    assert "rank 1 of 4" in result.stdout.splitlines()[0]
    assert result.stdout.splitlines()[-1].startswith("4 samples of rank 1 of 4 in step 15 of 16,")


def test_pictures_are_saved_into_a_new_folder(run, tmp_path):
    folder = tmp_path / "new" / "pictures"
    at = [run().out, "--epoch", 0, "--step", 0, "--rank", "0/6", "--save", folder]
    result = explain(*at)
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in folder.iterdir())
    assert [name[:3] for name in names] == ["00-", "01-", "ste"]
    for name in names:
        with Image.open(folder / name) as image:
            assert image.width > 300
    assert str(folder / "step.png") in result.stdout
    assert refused(explain(*at), "is not empty")


def test_a_sample_is_found_by_key_and_by_id(run, shards, tmp_path):
    config = run()
    ids = Order(read_manifest(shards).shard_counts, config.order, seed=5).global_batch(2, 9)
    key = Store(shards).keys()[ids[7]]
    for name in (key, ids[7], f"key:{key}"):
        file = tmp_path / "sample.json"
        result = explain(config.out, "--epoch", 2, "--sample", name, "--json", file)
        assert result.exit_code == 0, result.output
        assert "at step 9 of 16, lane 3, position 7; of R ranks" in result.stdout.splitlines()[-1]
        (step,) = json.loads(file.read_text())["steps"]
        assert [row["key"] for row in step["samples"]] == [key]


def test_a_sample_of_the_remainder_is_said_to_be_left_over(run, shards):
    config = run()
    order = Order(read_manifest(shards).shard_counts, config.order, seed=5)
    seen = {int(i) for step in range(16) for i in order.global_batch(0, step)}
    (sample_id, *_) = set(range(198)) - seen
    result = explain(config.out, "--epoch", 0, "--sample", sample_id)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(
        f"sample {sample_id} does not appear in epoch 0: it falls into the remainder, the 6 samples"
    )


def test_a_stand_in_is_named(run, own_shards):
    info = read_manifest(own_shards).shards[1]
    (own_shards / info.name).write_bytes(bytes(info.num_bytes))
    config = run(manifest=str(own_shards), on_damage="quarantine", max_bad_fraction=0.9)
    result = explain(config.out, "--epoch", 0, "--sample", 70)
    assert result.exit_code == 0, result.output
    # The column is narrow: look at the words, wherever the lines break.
    assert "stands in for" in result.stdout
    assert "(hash)" in result.stdout
    assert not (config.out / "quarantine.jsonl").exists()


def test_a_mixture_names_its_sets(run, shards, own_shards):
    sets = [{"manifest": str(folder), "weight": 1} for folder in (shards, own_shards)]
    result = explain(run(mixture=sets).out, "--epoch", 0, "--step", 0)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"data set {shards}, {own_shards}, fingerprint ")
    assert result.stdout.count("set 1") == 6


AT = ["--epoch", "0", "--step", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--epoch", "0", "--step", "16"], ["step (=16) must be in 0..15"]),
        ([*AT, "--rank", "1"], ["rank (=1) must have the form r/R"]),
        ([*AT, "--rank", "-1/4"], ["rank (=-1/4) must have the form r/R"]),
        ([*AT, "--rank", "4/4"], ["rank (=4/4) must be less than"]),
        ([*AT, "--rank", "0/0"], ["rank (=0/0) must be less than"]),
        ([*AT, "--rank", "0/7"], ["world_size (=7) exceeds num_lanes (=6)"]),
        ([*AT, "--sample", "1"], ["either --step S", "or --sample"]),
        (["--epoch", "0"], ["either --step S", "or --sample"]),
        (["--epoch", "0", "--sample", "1", "--rank", "0/2"], ["rank (=0/2) goes with --step"]),
        (["--epoch", "0", "--sample", "198"], ["sample (=198) is neither an id in 0..197 nor"]),
        ([*AT, "--config", "any.yaml"], ["drop --config and key.path=value"]),
        ([*AT, "order.window=5"], ["drop --config and key.path=value"]),
    ],
)
def test_a_question_without_an_answer_is_one_line(run, arguments, words):
    assert refused(explain(run().out, *arguments), *words)


def test_shards_alone_have_no_order(shards, tmp_path):
    both = ["tessera explain runs/demo", "--config configs/demo/pretrain.yaml"]
    assert refused(explain(shards, *AT), "alone has no order", *both)
    assert refused(explain(tmp_path, *AT), "holds neither", *both)
    assert refused(explain(tmp_path / "nowhere", *AT), "does not exist", *both)
    lacking = tmp_path / "run.yaml"
    raw = yaml.safe_load(CONFIG.read_text())
    lacking.write_text(yaml.safe_dump({k: v for k, v in raw.items() if k != "order"}))
    assert refused(explain(shards, *AT, "--config", lacking), "order is missing in")


def test_a_stream_cannot_be_explained(run, shards):
    config = run(stream={"url": str(shards / "shard-000000.tar"), "samples_per_epoch": 60})
    assert refused(explain(config.out, *AT), "data.stream has no fixed order")
