import errno
import logging
import random
import shutil

import pytest
import torch

from pipeline.config import ConfigError
from training import checkpoint as module
from training.checkpoint import Checkpoint, load_newest, remove_partial, save_checkpoint

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


def checkpoint_of(step):
    """A model after one step of SGD, so that the optimizer holds momenta."""
    torch.manual_seed(step)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    progress = {"loader": {"epoch": 1, "step": step, "fingerprint": "ab"}, "seconds": 1.5}
    return Checkpoint(step, model.state_dict(), optimizer.state_dict(), progress)


def assert_equal(loaded, saved):
    assert (loaded.step, loaded.progress) == (saved.step, saved.progress)
    assert loaded.model.keys() == saved.model.keys()
    assert all(torch.equal(loaded.model[key], saved.model[key]) for key in saved.model)
    assert loaded.optimizer["param_groups"] == saved.optimizer["param_groups"]
    for number, state in saved.optimizer["state"].items():
        momentum = loaded.optimizer["state"][number]["momentum_buffer"]
        assert torch.equal(momentum, state["momentum_buffer"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (10, 20):
        save_checkpoint(folder, checkpoint_of(step))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Checkpoints of steps 10 and 20 that a test may damage."""
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def scratch(saved, tmp_path_factory):
    """The same, restored after every example."""
    return shutil.copytree(saved, tmp_path_factory.mktemp("scratch") / "checkpoints")


def test_what_was_saved_is_loaded(folder):
    assert_equal(load_newest(folder), checkpoint_of(20))


def test_without_checkpoints_there_is_none(tmp_path):
    assert load_newest(tmp_path / "none") is None
    assert load_newest(tmp_path) is None


def test_only_the_newest_two_are_kept(folder):
    save_checkpoint(folder, checkpoint_of(30))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000020", "step-00000030"]
    assert load_newest(folder).step == 30


def test_a_step_that_is_saved_again_is_replaced(folder):
    again = checkpoint_of(20)
    again.progress["seconds"] = 99.0
    save_checkpoint(folder, again)
    assert_equal(load_newest(folder), again)


def test_what_a_kill_left_half_written_is_no_checkpoint(folder):
    shutil.copytree(folder / "step-00000020", folder / ".step-00000030.4242.partial")
    assert load_newest(folder).step == 20


def damages():
    """400 flipped bits and 100 cuts, over all bytes of a checkpoint alike."""
    rng = random.Random(7)
    return [(rng.random(), rng.randrange(8)) for _ in range(400)] + [
        (rng.random(), None) for _ in range(100)
    ]


def test_400_of_400_flipped_bits_and_100_of_100_cuts_are_found(scratch, caplog):
    newest = scratch / "step-00000020"
    sizes = {name: (newest / name).stat().st_size for name in FILES}
    for place, bit in damages():
        at = int(place * sum(sizes.values()))
        for name in FILES:
            if at < sizes[name]:
                break
            at -= sizes[name]
        path = newest / name
        whole = path.read_bytes()
        flipped = bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :] if bit is not None else b""
        path.write_bytes(whole[:at] + flipped)
        try:
            assert load_newest(scratch).step == 10, (name, at, bit)
        finally:
            path.write_bytes(whole)
    assert load_newest(scratch).step == 20


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_every_byte_of_json_counts(folder, name):
    path = folder / "step-00000020" / name
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        assert load_newest(folder).step == 10


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_cut_file_falls_back_to_the_older_one_and_says_so(folder, name, caplog):
    (folder / "step-00000020" / name).unlink()
    with caplog.at_level(logging.WARNING, "training.checkpoint"):
        assert_equal(load_newest(folder), checkpoint_of(10))
    (record,) = caplog.records
    assert f"{folder / 'step-00000020'} is damaged and skipped" in record.getMessage()


def test_when_all_are_damaged_the_run_does_not_silently_start_anew(folder):
    for path in folder.glob("step-*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        load_newest(folder)
    assert str(caught.value) == (
        f"checkpoints (={folder}): all 2 are damaged; restore one or start anew."
    )


def test_no_file_of_a_checkpoint_is_a_pickle(folder):
    assert {path.name for path in (folder / "step-00000020").iterdir()} == set(FILES)
    save_checkpoint(folder, adamw_checkpoint(30))
    loaded = load_newest(folder)
    assert loaded.optimizer["param_groups"] == adamw_checkpoint(30).optimizer["param_groups"]
    for number, state in adamw_checkpoint(30).optimizer["state"].items():
        for key, value in state.items():
            assert torch.equal(loaded.optimizer["state"][number][key], value)


def adamw_checkpoint(step):
    torch.manual_seed(step)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3)).square().sum().backward()
    optimizer.step()
    return Checkpoint(step, model.state_dict(), optimizer.state_dict(), {})


def test_some_old_checkpoints_are_kept_for_good(tmp_path):
    for step in range(10, 80, 10):
        save_checkpoint(tmp_path, checkpoint_of(step), keep=1, keep_every=30)
    steps = [int(path.name[5:]) for path in sorted(tmp_path.iterdir())]
    assert steps == [30, 60, 70]


def test_a_checkpoint_under_the_name_of_another_step_is_passed_over(folder):
    shutil.copytree(folder / "step-00000010", folder / "step-00000030")
    assert load_newest(folder).step == 20


def test_files_of_two_steps_are_no_checkpoint(folder):
    shutil.copy(folder / "step-00000010/model.safetensors", folder / "step-00000020")
    assert load_newest(folder).step == 10


def test_a_full_disk_leaves_the_old_checkpoints_and_nothing_half_written(folder, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(folder, checkpoint_of(30))
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000010", "step-00000020"]
    assert load_newest(folder).step == 20


def test_a_disk_that_returns_other_bytes_is_noticed_at_once(folder, monkeypatch):
    written = module._write

    def forgetful(partial, checkpoint):
        written(partial, checkpoint)
        (partial / "model.safetensors").write_bytes(b"")

    monkeypatch.setattr(module, "_write", forgetful)
    with pytest.raises(OSError, match=r"model.safetensors does not match .* after it was written"):
        save_checkpoint(folder, checkpoint_of(30))
    assert load_newest(folder).step == 20


def test_what_kills_left_half_written_is_removed(tmp_path):
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, checkpoint_of(10))
    shutil.copytree(folder / "step-00000010", folder / ".step-00000020.4242.partial")
    (tmp_path / ".trunk.safetensors.4242.partial").touch()
    remove_partial(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.partial")] == []
    assert load_newest(folder).step == 10
