import io

from rich.console import Console

from cluster import screen
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
