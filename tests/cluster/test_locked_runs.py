import json
import os

import pytest
from command import ROOT, refused, tessera

from pipeline.atomic import partial_path
from pipeline.lock import lock_folder

DEMO = ROOT / "configs" / "demo" / "pretrain.yaml"
FEW = ("train.epochs=1", "train.max_minutes=null", "order.global_batch=64", "transfer=null")


@pytest.fixture
def run(tmp_path, shards):
    """The words of a pretraining of three steps into tmp_path/out."""
    return ("pretrain", DEMO, f"out={tmp_path}/out", f"data.manifest={shards}", *FEW, "--local")


def test_a_second_start_is_refused_while_the_first_lives_and_leaves_it_alone(run, tmp_path):
    with lock_folder(tmp_path / "out"):
        for more in ((), ("--resume",)):
            assert refused(tessera(*run, *more), "is in use by process", str(os.getpid()))
        transfer = tessera("transfer", DEMO, *run[2:4], "--local")
        assert refused(transfer, "is in use by process", str(os.getpid()))
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_failed_start_leaves_no_run(run, tmp_path, monkeypatch, is_there):
    def fail(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "out/checkpoints"))

    if is_there:
        (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("training.pretrain.train", fail)
        assert refused(tessera(*run), "checkpoints: No space left on device; free some space")
    assert (tmp_path / "out").exists() == is_there
    assert not is_there or not list((tmp_path / "out").iterdir())
    assert tessera(*run).exit_code == 0
    assert json.loads((tmp_path / "out/pretrain.json").read_text())["steps"] == 3
    assert refused(tessera(*run), "holds a run", "--resume")


def test_two_writers_never_share_a_temporary_name(tmp_path):
    names = {partial_path(tmp_path / "file").name for _ in range(100)}
    assert len(names) == 100  # One process: as in containers, whose processes have equal numbers.
    assert all(name.startswith(".file.") and name.endswith(".partial") for name in names)
