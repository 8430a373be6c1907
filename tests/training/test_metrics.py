from dataclasses import replace

import pytest

from training.metrics import FILE_NAME, MetricsRecord, MetricsWriter, last_record, read_metrics

RECORD = MetricsRecord(0, 0, 0.5, 1.0, 4.25, 0.125, 0.001, 200.0, 0.01)


@pytest.mark.parametrize("count", [1, 3, 200])  # 200 records exceed the tail that is read.
def test_the_last_record_is_the_last_of_all_records(tmp_path, count):
    with MetricsWriter(tmp_path, resume_step=0) as log:
        for step in range(1, count + 1):
            log.write(replace(RECORD, step=step))
    assert last_record(tmp_path) == read_metrics(tmp_path)[-1] == replace(RECORD, step=count)


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path):
    with MetricsWriter(tmp_path, resume_step=0) as log:
        log.write(replace(RECORD, step=1))
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"step": 2, "epo')
    assert last_record(tmp_path) == replace(RECORD, step=1)


def test_there_is_no_last_record_before_the_first(tmp_path):
    assert last_record(tmp_path) is None
    (tmp_path / FILE_NAME).touch()
    assert last_record(tmp_path) is None
