"""The configs that come with the project are whole."""

from pathlib import Path

import pytest

from pipeline.config import load
from pipeline.ingest.config import ShardConfig
from training.run import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted(
    path for path in CONFIGS.rglob("*.yaml") if "shard" not in path.parent.name + path.name
)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_config_of_a_run_loads_and_says_how_to_use_it(path):
    config = load(RunConfig, path)
    assert config.pretext is not None or config.transfer is not None
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"configs/{path.parent.name}/{path.name}" in line for line in comment)


def test_a_config_of_shards_loads():
    assert load(ShardConfig, CONFIGS / "demo/shard.yaml").samples_per_shard == 500
