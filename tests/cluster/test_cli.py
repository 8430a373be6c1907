import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import refused, started, tessera
from PIL import Image

from cluster.cli import COMMANDS, load_command
from pipeline.config import load
from pipeline.ingest.config import ShardConfig
from training.run import RunConfig, pretraining_of

pytestmark = pytest.mark.multiprocess

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo"


@pytest.fixture
def config(tmp_path, shards):
    """A function that writes demo/pretrain.yaml with changes and returns its path."""

    def write(**changes):
        raw = yaml.safe_load((DEMO / "pretrain.yaml").read_text())
        raw["out"], raw["data"]["manifest"] = str(tmp_path / "out"), str(shards)
        for path, value in changes.items():
            *sections, key = path.split("__")
            node = raw
            for section in sections:
                node = node[section]
            node[key] = value
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return write


@pytest.fixture
def flat_shards(tmp_path, make_shards):
    """Shards without labels: the images lie directly in the source."""
    images = tmp_path / "flat"
    images.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(images / f"{number}.jpg")
    out = tmp_path / "flat-shards"
    make_shards(images, out, ShardConfig())
    return out


def test_version_names_what_results_depend_on():
    result = started("--version")
    assert result.returncode == 0
    names = [line.split()[0] for line in result.stdout.splitlines()]
    assert {"tessera", "torch", "nvidia-dali-cuda130", "ray", "python"} <= set(names)


def test_help_teaches_every_command():
    shown = tessera("--help").stdout
    stages = ("shard", "index", "pretrain", "transfer", "report", "submit", "demo", "explain")
    stages += ("inspect", "verify", "repair", "purge", "merge", "split")
    for command in (*stages, "bench"):
        assert command in shown
    for command in (
        *([name] for name in stages),
        ["bench", "loader"],
        ["bench", "shard"],
        ["bench", "walk"],
    ):
        assert "Example: tessera" in tessera(*command, "--help").stdout


def test_a_missing_source_is_one_line(tmp_path):
    result = tessera("shard", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert refused(result, "nowhere")
    assert not (tmp_path / "out").exists()


def test_a_source_without_files_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    result = tessera("shard", tmp_path / "empty", "--out", tmp_path / "out")
    assert refused(result, "empty")
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
def test_a_source_without_images_is_one_line(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "page.jpg").write_text("<html>404</html>")
    result = started("shard", tmp_path / "texts", "--out", tmp_path / "out")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1, result.stderr
    assert "0 usable of 1" in result.stderr
    assert "not_image" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_out_folder_that_is_not_empty_is_one_line(tmp_path, shards):
    result = tessera("shard", shards, "--out", tmp_path / "out")
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "mine.txt").write_text("keep")
    for arguments in (["shard", shards, "--out"], ["demo", "--out"]):
        result = tessera(*arguments, tmp_path / "out")
        assert refused(result, "is not empty", "--resume")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trian": {}}, ["trian", "did you mean train?"]),
        ({"optim__learning_rate": 1}, ["optim.learning_rate", "known keys", "lr"]),
        ({"optim__name": "adamw2"}, ["optim"]),
        ({"train__workers": "many"}, ["train.workers (=many)"]),
        ({"pretext__tile_px": 44}, ["tile_px (=44)", "129 / grid 3"]),
        ({"order__num_lanes": 7}, ["global_batch (=64)", "num_lanes (=7)"]),
        ({"order__global_batch": 4096}, ["fewer than one global_batch (=4096)"]),
        ({"train__workers": 9}, ["world_size (=9) exceeds num_lanes (=8)"]),
        ({"data__manifest": "nowhere"}, ["nowhere", "tessera shard"]),
        ({"train": None}, ["train is missing"]),
    ],
)
def test_a_bad_config_is_one_line(config, tmp_path, changes, words):
    assert refused(tessera("pretrain", config(**changes), "--local"), *words)
    assert not (tmp_path / "out").exists()


def test_an_override_goes_through_the_same_laws(config):
    assert refused(
        tessera("pretrain", config(), "pretext.grid=17", "--local"), "pretext.grid (=17)"
    )
    assert refused(tessera("pretrain", config(), "pretext.grid", "--local"), "key.path=value")


def test_transfer_without_classes_is_one_line(config, flat_shards):
    result = tessera("transfer", config(data__manifest=str(flat_shards)))
    assert refused(result, "0 classes", "at least 2")


def test_transfer_without_a_trunk_is_one_line(config):
    assert refused(tessera("transfer", config()), "trunk.safetensors", "No such file")


def test_a_report_of_no_run_is_one_line(tmp_path):
    assert refused(tessera("report", tmp_path), "config.yaml")


def test_submit_without_a_cluster_is_one_line(config):
    result = tessera("submit", config(), "--address", "http://127.0.0.1:9")
    assert refused(result, "http://127.0.0.1:9", "ray start --head")


def test_pretrain_without_ray_trains_reports_and_refuses_a_second_run(config, tmp_path):
    few = ["train.epochs=1", "train.max_minutes=null", "order.global_batch=64", "train.log_every=1"]
    result = started("pretrain", config(), *few, "--local")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out" / "pretrain.json").read_text())
    assert summary["steps"] == 3  # 200 images make 3 steps of 64.
    assert (tmp_path / "out" / "trunk.safetensors").exists()
    assert refused(tessera("pretrain", config(), *few, "--local"), "holds a run", "--resume")
    more = tessera("pretrain", config(), *few, "train.epochs=2", "--local", "--resume")
    assert refused(more, "train.epochs (=2) differs")


def test_the_configs_of_the_repository_are_valid_and_agree():
    load(ShardConfig, DEMO / "shard.yaml")
    alone = load(RunConfig, DEMO / "transfer.yaml")
    chain = load(RunConfig, DEMO / "pretrain.yaml")
    assert pretraining_of(chain).train.workers == 2
    assert (alone.out, alone.data, alone.trunk) == (chain.out, chain.data, chain.trunk)
    assert alone.transfer == chain.transfer
    pretraining_of(load(RunConfig, ROOT / "configs" / "pretrain" / "jigsaw_r50.yaml"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_first_line_of_each_command(name):
    assert load_command(name).help.split("\n")[0] == COMMANDS[name].line


def test_a_mistyped_command_names_the_nearest():
    for arguments, nearest in ((["pretian"], "pretrain"), (["bench", "lodaer"], "loader")):
        result = tessera(*arguments)
        assert result.exit_code == 2
        assert f"Did you mean '{nearest}'?" in result.stderr


def test_help_and_refusals_do_not_wait_for_what_they_do_not_use():
    """Each takes seconds to load; all in one process, so what one loads fails all."""
    calls = [
        ["--help"],
        *([name, "--help"] for name in COMMANDS),
        ["pretrain"],
        ["pretrain", "nosuch.yaml"],
        ["transfer", "nosuch.yaml"],
        ["audit", "nosuch.yaml", "shards"],
        ["preview", "nosuch.yaml", "shards", "--out", "page"],
        ["submit", "nosuch.yaml"],
        ["explain", "nosuch", "--epoch", "0", "--step", "0"],
    ]
    heavy = {"torch", "ray", "nvidia.dali", "numba", "pandas", "pyarrow", "aiohttp"}
    code = (
        "import sys\nfrom cluster.cli import app\n"
        f"for call in {calls!r}:\n"
        "    try: app(call)\n"
        "    except SystemExit as end: assert end.code == (0 if '--help' in call else 2), call\n"
        f"    assert not {heavy!r} & set(sys.modules), (call, {heavy!r} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        *((name, "torch") for name in ("pipeline.ingest.stage", "pipeline.upkeep.verify")),
        *(("cluster.launch", name) for name in ("ray.train", "pandas")),
    ],
)
def test_no_stage_waits_for_what_it_does_not_use(module, absent):
    code = f"import sys, {module}; assert {absent!r} not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
