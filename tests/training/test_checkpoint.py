import json
import logging
import pickle
import shutil

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ConfigError
from training.checkpoint import Checkpoint, load_newest, save_checkpoint

FILES = ("model.safetensors", "optimizer.pt", "state.json")


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


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(FILES),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.one_of(st.none(), st.integers(0, 7)),
)
def test_any_flipped_bit_and_any_cut_is_found(scratch, name, place, bit):
    path = scratch / "step-00000020" / name
    whole = path.read_bytes()
    at = int(place * len(whole))
    damaged = bytearray(whole[:at] if bit is None else whole)
    if bit is not None:
        damaged[at] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        assert load_newest(scratch).step == 10
    finally:
        path.write_bytes(whole)


def test_every_byte_of_the_state_counts(folder):
    path = folder / "step-00000020" / "state.json"
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


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (type(self.mark).touch, (self.mark,))


def test_code_in_a_checkpoint_is_not_run_even_with_a_right_hash(folder, tmp_path):
    mark = tmp_path / "was_run"
    newest = folder / "step-00000020"
    forge(newest, pickle.dumps(Payload(mark), protocol=2))
    assert load_newest(folder).step == 10
    assert not mark.exists()
    torch.save({"state": Payload(mark)}, tmp_path / "archive")
    forge(newest, (tmp_path / "archive").read_bytes())
    assert load_newest(folder).step == 10
    assert not mark.exists()


def forge(checkpoint, optimizer):
    """Replace the bytes and fix every hash."""
    raw = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "optimizer.pt").write_bytes(optimizer)
    state = raw["state"]
    state["xxh3"]["optimizer.pt"] = xxhash.xxh3_64_hexdigest(optimizer)
    raw["xxh3"] = xxhash.xxh3_64_hexdigest(json.dumps(state).encode())
    (checkpoint / "state.json").write_text(json.dumps(raw))
