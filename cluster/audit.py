"""`tessera audit`: the shortcut audit, on the screen, as a page and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.audit_page import write_page
from cluster.screen import bar
from pipeline.atomic import write_json
from pipeline.audit.audit import Audit, ShortcutVerdict, run_audit
from pipeline.audit.evidence import ProbeScore
from pipeline.audit.gather import Progress, Source
from pipeline.audit.limits import Shortcut
from pipeline.audit.planted import PlantedBug, listed, prove
from pipeline.config import ConfigError, load
from pipeline.pretext.multitask import tasks_of
from pipeline.pretext.supervised import SupervisedConfig
from pipeline.remote.location import is_remote, local_path
from pipeline.shards.manifest import FILE_NAME
from training.run import RunConfig

WIDTH = 100
"""Columns that the tables fit into."""
PAGE, JSON = "audit.html", "audit.json"


@dataclass(frozen=True, slots=True)
class AuditRequest:
    """What a person asks for."""

    images: int
    """At most."""
    prove: bool
    """Whether bugs are planted, too."""
    out: Path
    """Folder for the page and the JSON."""
    json_file: Path | None


def source_of(config: Path, manifest: str, overrides: Sequence[str]) -> Source:
    """Take pretext and seed of a run, and the shards of a manifest.

    Raises:
        ConfigError: The config has no pretext, or there are no shards.
    """
    run = load(RunConfig, config, overrides)
    if run.pretext is None:
        raise ConfigError(f"pretext is missing in {config}: there is nothing to audit without it.")
    if any(isinstance(task, SupervisedConfig) for task in tasks_of(run.pretext)):
        raise ConfigError(
            f"pretext (={run.pretext.name}) asks for labels of people, which no shortcut of the "
            "pipeline gives away: there is nothing to audit; give a pretext without supervised."
        )
    folder = None if is_remote(manifest) else local_path(manifest)
    if folder is not None and not folder.exists():
        raise ConfigError(
            f"manifest (={manifest}) does not exist; give a folder of shards, as `tessera shard` "
            "and `tessera index` make it."
        )
    if folder is not None and folder.is_dir() and not (folder / FILE_NAME).exists():
        raise ConfigError(
            f"folder (={manifest}) holds no {FILE_NAME}; give a folder of shards, as `tessera "
            "shard` and `tessera index` make it."
        )
    alone = {"manifest": manifest, "mixture": None, "stream": None}
    return Source(run.data.model_copy(update=alone), run.pretext, run.seed)


def audit_shards(source: Source, wanted: AuditRequest, console: Console) -> bool:
    """Run the audit, print what it found, and write page and JSON.

    Returns:
        Whether no shortcut is open, the control is at chance, and every planted bug was caught.

    Raises:
        ConfigError: There are too few images, or the folder for the page is a file.
        DamageError: A sample is damaged, and the run's policy is to stop.
    """
    if wanted.out.exists() and not wanted.out.is_dir():
        raise ConfigError(f"out (={wanted.out}) is a file; give a folder for the page.")
    with bar(console, "audit", counts=False) as progress:
        found = run_audit(source, wanted.images, _shown(progress.update))
    console.print(table_of(found))
    catches: tuple[PlantedBug, ...] = ()
    if wanted.prove:
        with bar(console, "prove", counts=False) as progress:
            catches = prove(source, wanted.images, _shown(progress.update))
        console.print(catch_table(catches))
    missed = [catch for catch in catches if not catch.caught]
    ok = found.ok and not missed
    result = {**found.listed(), "ok": ok}
    if catches:
        result["planted"] = [listed(catch) for catch in catches]
    wanted.out.mkdir(parents=True, exist_ok=True)
    write_page(wanted.out / PAGE, found, catches, source)
    for path in (wanted.out / JSON, wanted.json_file):
        if path is not None:
            write_json(path, result)
    console.print(Text(f"page: {wanted.out / PAGE}, figures: {wanted.out / JSON}"), soft_wrap=True)
    console.print(Text(last_line(found, missed, len(catches)), "" if ok else "red"), soft_wrap=True)
    return ok


def table_of(found: Audit) -> Table:
    """List the shortcuts."""
    table = Table(width=WIDTH, caption=_caption(found))
    table.add_column("shortcut", overflow="fold")
    for name in ("score", "95 %", "control", "95 %", "limit"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for name, verdict in zip(found.names(), found.verdicts, strict=True):
        score, control = verdict.score, verdict.control
        table.add_row(
            name,
            _figure(score.value),
            _interval(score, verdict.shortcut),
            _figure(control.value) if control else "",
            _interval(control, verdict.shortcut) if control else "",
            f"{verdict.shortcut.limit:g}",
            Text(said(verdict), "green" if verdict.ok else "bold red"),
        )
    return table


def catch_table(catches: Sequence[PlantedBug]) -> Table:
    """List the planted bugs."""
    table = Table(width=WIDTH, caption="score of the named probe, without and with the bug")
    table.add_column("planted", overflow="fold")
    table.add_column("probe")
    for name in ("without", "with", "95 %", "limit"):
        table.add_column(name, justify="right")
    table.add_column("caught")
    for catch in catches:
        table.add_row(
            catch.bug,
            catch.shortcut.name,
            _figure(catch.without.value),
            _figure(catch.planted.value),
            _interval(catch.planted, catch.shortcut),
            f"{catch.limit:g}",
            Text("yes", "green") if catch.caught else Text("no", "bold red"),
        )
    return table


def said(verdict: ShortcutVerdict) -> str:
    """Say a verdict in a word or two."""
    if verdict.is_bug:
        return "pipeline bug"
    return "open" if verdict.is_open else "closed"


def last_line(found: Audit, missed: Sequence[PlantedBug], planted: int) -> str:
    """Say in one line what was found."""
    named = list(zip(found.names(), found.verdicts, strict=True))
    parts = []
    is_open = [
        f"{n} {_figure(v.score.value)} (limit {v.shortcut.limit:g})" for n, v in named if v.is_open
    ]
    bugs = [f"{n} {_figure(v.control.value)}" for n, v in named if v.is_bug and v.control]
    if is_open:
        parts.append(f"open: {', '.join(is_open)}")
    if bugs:
        parts.append(f"given away by the pipeline, on images without content: {', '.join(bugs)}")
    if missed:
        parts.append(f"not caught: {', '.join(catch.bug for catch in missed)}")
    if parts:
        return "; ".join(parts)
    proof = f", and all {planted} planted bugs were caught" if planted else ""
    return f"no shortcut is open: {len(named)} probes on {found.images:,} images{proof}"


def _caption(found: Audit) -> str:
    return (
        f"0 is a blind guess, 1 always right; {found.images:,} images of {found.fingerprint}, "
        f"{found.control_images:,} without content"
    )


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _interval(score: ProbeScore, shortcut: Shortcut) -> str:
    return f"{score.low:.3f} .. {score.high:.3f}" if shortcut.sampled else "exact"


def _shown(update: Callable[[float, float, str], None]) -> Progress:
    return lambda share, note: update(100 * share, 100, note)
