import io

from rich.console import Console

from cluster import screen, shard
from cluster.screen import bar


def test_a_log_has_a_line_for_every_tenth_and_every_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(screen.time, "monotonic", lambda: now[0])
    sink = io.StringIO()
    with bar(Console(file=sink, width=100), "bench", counts=False) as line:
        for done, seconds, note in (
            (0, 1, "a"),
            (1, 2, "b"),
            (5, 3, "c"),
            (5, 62, "d"),
            (5, 64, "e"),
            (49, 65, "f"),
            (50, 66, "g"),
        ):
            now[0] = float(seconds)
            line.update(done, 50, note)
    assert sink.getvalue().splitlines() == [
        "bench: 0%  a",
        "bench: 10%  c",
        "bench: 10%  e",
        "bench: 90%  f",
        "bench: 100%  g",
    ]


def test_eighty_columns_show_all_of_it():
    sink = io.StringIO()
    note = "examine: 8000 accepted, 12 quarantined, 1 filtered, 1134 images/s"
    with bar(Console(file=sink, force_terminal=True, width=80), "shard", counts=True) as line:
        first = sink.getvalue()
        line.update(8000, 9144, note)
    assert "starting" in first
    assert "left" not in first  # The time so far is not what is left.
    assert "8000/9144" in sink.getvalue()
    assert note in sink.getvalue()


def test_the_pace_leaves_out_what_was_done_at_first(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(shard.time, "monotonic", lambda: now[0])
    throughput = shard.Throughput()
    assert throughput.describe(5000) == ""  # A resumed run finds them.
    now[0] = 102.0
    assert throughput.describe(5500) == "250 images/s"
