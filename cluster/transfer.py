"""`tessera transfer`: what a trunk is worth, in this process or on Ray; its tables."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cluster.report import add_results
from cluster.screen import ConfigFile, IncompleteError, JsonFile, Overrides, bar, load_run, say
from pipeline.atomic import write_json
from pipeline.config import ConfigError

if TYPE_CHECKING:
    from training.run import RunConfig
    from training.transfer.evaluate import Outcome

Entry = Mapping[str, Any]
"""One result: of a job on a layer of a trunk."""


def transfer(
    config: ConfigFile,
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="One plain process, job after job, without Ray.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Score a run's trunk on labelled images, beside a random and a supervised trunk.

    Every job of the config on every trunk: SVMs, few labels, neighbours, probes, fine-tuning,
    detection. Results go to OUT/transfer/JOB.json and OUT/results.csv. However it was stopped, the
    same command runs only what is missing.

    Example: tessera transfer configs/demo/transfer.yaml
    """
    console = Console()
    found = run_transfer(load_run(config, overrides), console, local=local)
    if found.summary:
        console.print(layer_table(found.summary))
    console.print(transfer_table(found.entries))
    if json_file:
        write_json(json_file, found.entries)
    require_all(found)


def run_transfer(config: "RunConfig", console: Console, *, local: bool) -> "Outcome":
    """Run every job on every trunk, under Ray or (`local`) in this process.

    Raises:
        ConfigError: The transfer cannot begin.
    """
    from pipeline.lock import lock_folder

    started = time.monotonic()
    with lock_folder(config.out):
        found = _transfer(config, console, local=local)
        kept = found.summary or {"results": found.entries}
        add_results(config.out, "transfer", started, transfer=kept)
    for note in found.notes:
        say(console, f"transfer: {note}")
    for pair, count in found.overlap.items():
        if count:
            first, second = pair.split("/")
            say(console, f"transfer: {count} images of {second} are in {first}, too")
    say(console, last_line(found.entries))
    return found


def _transfer(config: "RunConfig", console: Console, *, local: bool) -> "Outcome":
    with bar(console, "transfer", counts=True) as line:

        def show(what: str, done: int, total: int) -> None:
            line.update(done, total, what)

        if local:
            from training.transfer.evaluate import here
            from training.transfer.evaluate import transfer as transfer_here

            return transfer_here(config, here(), show)
        from cluster.launch import transfer_on_ray

        return transfer_on_ray(config, show)


def require_all(found: "Outcome") -> None:
    """Refuse a transfer of which some jobs failed; the results of the others are kept.

    Raises:
        ConfigError: Every failure can be fixed in the config.
        IncompleteError: Something failed for another reason.
    """
    failures = found.failures
    if not failures:
        return
    lines = [f"{name} ({str(error) or type(error).__name__})" for name, error in failures.items()]
    text = f"{' '.join('; '.join(lines).split())}. The results of the other jobs are kept."
    if all(isinstance(error, ConfigError) for error in failures.values()):
        raise ConfigError(text)
    raise IncompleteError(f"failed: {text} The same command runs only what is missing.")


def transfer_table(entries: Sequence[Entry]) -> Group:
    """Show the best layer of each job and trunk: mean, range over seeds or draws, and name.

    One line per trunk: side by side, five of them do not fit into 80 columns.
    """
    trunks = list(dict.fromkeys(entry["trunk"] for entry in entries))
    table = Table()
    for name in ("job", "trunk"):
        table.add_column(name)
    table.add_column("score", justify="right")
    for name in ("least to most", "layer"):
        table.add_column(name, overflow="fold")
    for label, ours in _rows(entries).items():
        best = {trunk: _best(ours, trunk) for trunk in trunks}
        highest = max(entry["score"] for entry in best.values() if entry)
        for number, (trunk, entry) in enumerate(best.items()):
            table.add_row("" if number else label, trunk, *_cells(entry, highest))
        table.add_section()
    return _titled("Transfer: the best layer of each trunk, percent", table)


def layer_table(summary: Mapping[str, Any]) -> Group:
    """Show every layer of the svm job; the best of each trunk in bold."""
    layers = summary["layers"]
    table = Table()
    table.add_column("layer")
    gains = {"random", "pretrained"} <= set(layers)
    for name in (*layers, *(["gain"] if gains else [])):
        table.add_column(name, justify="right")
    best = {name: summary[f"best_{name}"] for name in layers}
    for layer in next(iter(layers.values())):
        scores = {name: by[layer]["score"] for name, by in layers.items()}
        cells = [_bold(f"{s:.1f}", on=s == best[name]) for name, s in scores.items()]
        table.add_row(layer, *cells, *_gain(scores, shown=gains))
    table.add_section()
    every = [f"{score:.1f}" for score in best.values()]
    table.add_row("best", *every, *_gain(best, shown=gains), style="bold")
    images = (
        f"{summary['train_images']} training and {summary['test_images']} test images of "
        f"{summary['classes']} classes"
    )
    return _titled(f"Transfer: {summary['metric']}\n{images}", table)


def last_line(entries: Sequence[Entry]) -> str:
    """Return the scores of the first job, of every trunk, as one line."""
    if not entries:
        return "transfer: no job was finished"
    label, ours = next(iter(_rows(entries).items()))
    trunks = list(dict.fromkeys(entry["trunk"] for entry in ours))
    found = [entry for entry in (_best(ours, trunk) for trunk in trunks) if entry]
    shown = ", ".join(f"{e['trunk']} {e['score']:.1f} %{_at(e)}" for e in found)
    return f"transfer: {label}: {shown} ({ours[0]['metric']})"


def _rows(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Group entries by what is comparable: a job, and its k if it has several."""
    rows: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        rows.setdefault((entry["job"], entry["metric"]), []).append(entry)
    named: dict[str, list[Entry]] = {}
    for (job, metric), ours in rows.items():
        details = ours[0]["details"]
        k = details.get("shots", details.get("neighbours") if job == "knn" else None)
        label = job if k is None else f"{job} k={k}"
        named[label if label not in named else f"{label}: {metric}"] = ours
    return named


def _best(entries: Sequence[Entry], trunk: str) -> Entry | None:
    ours = [entry for entry in entries if entry["trunk"] == trunk]
    return max(ours, key=lambda entry: entry["score"], default=None)


def _cells(entry: Entry | None, highest: float) -> list[str]:
    if entry is None:
        return ["failed", "", ""]
    low, high = entry["range"]
    spread = f"{low:.1f} to {high:.1f}" if low < high else ""
    score = _bold(f"{entry['score']:.1f}", on=entry["score"] == highest)
    return [score, spread, entry["layer"] or ""]


def _at(entry: Entry) -> str:
    return f" {entry['layer']}" if entry["layer"] else ""


def _gain(scores: Mapping[str, float], *, shown: bool) -> list[str]:
    return [f"{scores['pretrained'] - scores['random']:+.1f}"] if shown else []


def _titled(title: str, table: Table) -> Group:
    """Print the title above the table: its own would be wrapped to the table's width."""
    return Group(Text(title, style="table.title"), table)


def _bold(text: str, *, on: bool) -> str:
    return f"[bold]{text}[/]" if on else text
