import os
import time

import numpy as np
import pytest

from pipeline.atomic import open_atomic, write_atomic

MIB = 2**20


def write_half(path):
    with open_atomic(path) as file:
        file.write(b"second")
        file.flush()
        raise KeyboardInterrupt


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"first")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_in_many_pieces_is_what_is_read(tmp_path):
    data = np.random.default_rng(0).bytes(20 * MIB + 77)
    with open_atomic(tmp_path / "file") as file:
        for start in range(0, len(data), 100_000):
            assert file.write(data[start : start + 100_000]) == len(data[start : start + 100_000])
        file.seek(5)
        assert file.read(20) == data[5:25]
    assert (tmp_path / "file").read_bytes() == data


def test_much_goes_to_the_disk_while_more_is_written(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fdatasync", lambda number: synced.append(os.fstat(number).st_size))
    with open_atomic(tmp_path / "file") as file:
        for _ in range(3):
            file.write(bytes(5 * MIB))
            deadline = time.monotonic() + 60
            while len(synced) < file.tell() // (5 * MIB) and time.monotonic() < deadline:
                time.sleep(0.001)
    assert synced == [5 * MIB, 10 * MIB, 15 * MIB]


@pytest.mark.parametrize("failing", ["fdatasync", "fsync"])
def test_a_disk_that_fails_is_told_of_and_leaves_no_file(tmp_path, monkeypatch, failing):
    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"), open_atomic(tmp_path / "file") as file:
        file.write(bytes(6 * MIB))
    assert list(tmp_path.iterdir()) == []
