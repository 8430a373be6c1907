import pytest

from pipeline.bench.faults import measure_faults


@pytest.mark.multiprocess
def test_no_file_is_lost_or_repeated_by_a_flaky_server():
    found = measure_faults(num_files=40, num_bytes=100_000, rounds=1, parallel=8)
    assert list(found) == ["clean", "faulty", "faulty_without_races"]
    for column in found.values():
        assert (column["lost"], column["repeated"]) == (0, 0)
        assert column["mb_per_s"] > 0
    assert found["clean"]["retries"] == 0
