import errno

import numpy as np
import pytest

from pipeline.ingest.near.search import new_array, release


@pytest.mark.parametrize("shape", [(0,), (5, 3)])
def test_what_was_written_stays_when_its_pages_are_released(tmp_path, shape):
    array = new_array(tmp_path / "numbers.npy", np.int64, shape)
    assert (array == 0).all()
    array[:] = 7
    release(array, np.ones(3))  # What is in no file is left alone.
    assert (array == 7).all()
    assert (np.load(tmp_path / "numbers.npy") == array).all()


def test_a_disk_without_room_is_found_before_anything_is_written(small_disk):
    path = small_disk / "large.npy"
    with pytest.raises(OSError, match="No space left") as caught:
        new_array(path, np.uint8, (2**21,))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
