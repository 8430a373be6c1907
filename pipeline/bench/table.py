"""What a person reads and a program parses: rows, ratios, the last line."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pipeline.bench.contest import Standing
from pipeline.bench.measure import speeds

Row = dict[str, Any]

_USED = 0.85  # Of the cores, by a contender that nothing holds up.


def rows_of(standings: Sequence[Standing]) -> list[Row]:
    """Describe every contender; rates are images per second, None where it did not run."""
    rows = [_row(standing) for standing in standings]
    fastest = fastest_peer(rows)
    limit = _named(rows, "decode_only")
    for row in rows:
        row["ratio_to_fastest_peer"] = ratio(row, fastest)
        row["ratio_to_decode_only"] = ratio(row, limit)
    return rows


def fastest_peer(rows: Sequence[Row]) -> Row | None:
    """Return the peer with the best median, None where none ran."""
    ran = [row for row in rows if row["role"] == "peer" and row["images_per_s"] is not None]
    return max(ran, key=lambda row: row["images_per_s"], default=None)


def ratio(row: Row | None, other: Row | None) -> float | None:
    """Divide two contenders' speeds, None where one did not run.

    The median of the ratios of the rounds, not the ratio of the medians: the two stood side by side
    in each round, so what slowed the machine slowed both.
    """
    if row is None or other is None or not row["rounds"] or not other["rounds"]:
        return None
    found: float = median(a / b for a, b in zip(row["rounds"], other["rounds"], strict=False))
    return found


def headline(rows: Sequence[Row]) -> Row:
    """Return what the JSON has at its top."""
    ours, fastest = _named(rows, "tessera"), fastest_peer(rows)
    return {
        "images_per_s": ours["images_per_s"] if ours else None,
        "images_per_cpu_s": ours["images_per_cpu_s"] if ours else None,
        "cores_used": ours["cores_used"] if ours else None,
        "fastest_peer": fastest["title"] if fastest else None,
        "ratio_to_fastest_peer": ratio(ours, fastest),
        "ratio_to_decode_only": ratio(ours, _named(rows, "decode_only")),
    }


def last_line(top: Row) -> str:
    """Say it in one line."""
    if top["images_per_s"] is None:
        return "ours did not run; see the table"
    parts = []
    if top["ratio_to_fastest_peer"] is not None:
        parts.append(
            f"{top['ratio_to_fastest_peer']:.2f}x the fastest peer ({top['fastest_peer']})"
        )
    if top["ratio_to_decode_only"] is not None:
        parts.append(f"{top['ratio_to_decode_only']:.2f} of decode only")
    return f"ours {', '.join(parts) or format(top['images_per_s'], '.0f') + ' images/s'}"


def busy_note(top: Row, cores: int) -> str | None:
    """Warn where the clock says more about other programs than about the contenders."""
    used = top["cores_used"]
    if used is None or used > _USED * cores:
        return None
    return (
        f"ours got {used:.1f} of {cores} cores: other programs run here, or a thread waits. "
        "Compare the column per CPU s, or run again on an idle machine."
    )


def load_note(load: float, cores: int) -> str | None:
    """Warn where other programs ran before the bench did."""
    if load <= cores / 2:
        return None
    return (
        f"the load of this machine was {load:.1f} before: other programs run here. "
        "Compare the column per CPU s, or run again on an idle machine."
    )


def contest_table(title: str, rows: Sequence[Row]) -> Table:
    """Show every contender, the fastest first; those that did not run say why."""
    table = Table(title=title, box=SIMPLE_HEAD)
    table.add_column("contender")
    for name in ("images/s", "min..max", "per CPU s", "x peer", "x decode"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: -(row["images_per_s"] or 0)):
        style = {"ours": "bold", "peer": "", "limit": "dim"}[row["role"]]
        if row["images_per_s"] is None:
            table.add_row(f"{row['title']}: {escape(row['failure'])}", style=style)
            continue
        table.add_row(
            row["title"],
            *speed_cells(row),
            _cell(row["ratio_to_fastest_peer"]),
            _cell(row["ratio_to_decode_only"]),
            style=style,
        )
    return table


def speed_cells(row: Row) -> list[str]:
    """Write what `speeds` found of a contender that ran: images/s, their range, and per CPU s."""
    return [
        f"{row['images_per_s']:,.0f}",
        f"{row['min']:,.0f}..{row['max']:,.0f}",
        f"{row['images_per_cpu_s']:,.0f}",
    ]


def _row(standing: Standing) -> Row:
    ran = bool(standing.rounds) and standing.failure is None
    return {
        "name": standing.entrant.contender.name,
        "title": standing.entrant.contender.title,
        "role": standing.entrant.contender.role,
        "setting": standing.setting,
        "failure": standing.failure,
        "cores_used": standing.images_per_s / standing.images_per_cpu_s if ran else None,
        **speeds(standing.rounds if ran else []),
    }


def _named(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row["name"] == name), None)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def measure_table(name: str, measured: Row) -> Table:
    """Show a further measure, one value a line."""
    table = Table(title=name.replace("_", " "), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, value in _flat(measured):
        table.add_row(key, value if isinstance(value, str) else f"{value:,.4g}")
    return table


def _flat(measured: Row, prefix: str = "") -> list[tuple[str, Any]]:
    """Spell out nested sections: shards 10 images_per_s."""
    found: list[tuple[str, Any]] = []
    for key, value in measured.items():
        nested = isinstance(value, dict)
        found += _flat(value, f"{prefix}{key} ") if nested else [(f"{prefix}{key}", value)]
    return found
