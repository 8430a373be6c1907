"""What the report shows of each run and each set of shards, and its pictures as files."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipeline.config import ConfigError
from pipeline.ingest.excluded import ExcludedInput
from pipeline.loading.data import open_store
from pipeline.shards.manifest import Ledger, Manifest
from training.metrics import MetricsRecord
from training.models.pretext_model import largest_view
from training.models.trunks import build_trunk
from training.report.pictures import (
    EmbeddedImage,
    Filters,
    Puzzles,
    contact_sheet,
    filters,
    one_sheet,
    png_of,
    puzzles,
    stored_picture,
)
from training.report.results import Results, commands, config_files, or_reason, read_excluded
from training.run import pretraining_of
from training.run_folder import TRANSFER_FOLDER, TRUNK_FILE
from training.transfer.frozen.retrieval import PICTURE_FILE
from training.transfer.weights import load_trunk

_SAMPLES = 24
_PUZZLES = 4
_EXCLUDED = 20
_TABLE_ROWS = 12


@dataclass(frozen=True, slots=True)
class InputPart:
    """One set of shards and the runs that read it; a string says why a part is missing."""

    key: str
    """An id, unique on the page."""
    runs: Sequence[str]
    manifest: Manifest | str
    sources: Mapping[str, Ledger]
    """Ledgers by source; empty if there is only one."""
    sheet: Sequence[EmbeddedImage] | str
    excluded: Sequence[ExcludedInput] | str


@dataclass(frozen=True, slots=True)
class RunPart:
    """One run; a string in place of a part says why it is missing."""

    name: str
    key: str
    """An id, unique on the page and among the picture folders."""
    results: Results
    puzzles: Puzzles | str
    records: Sequence[MetricsRecord]
    """A few of the run's records, evenly spaced, including the last."""
    filters: Filters | str
    retrieval: EmbeddedImage | str | None
    """None if that job has not run."""
    commands: Sequence[str]
    files: Mapping[str, str]
    """Name of a config file to its YAML."""


def input_parts(runs: Mapping[str, Results]) -> list[InputPart]:
    """Describe each set of shards once, in the order of the runs."""
    found: dict[str, list[str]] = {}
    for name, results in runs.items():
        manifest = results.manifest
        one = manifest if isinstance(manifest, str) else manifest.fingerprint
        found.setdefault(f"{results.shard_folder} {one}", []).append(name)
    return [_input(f"input-{n}", names, runs[names[0]]) for n, names in enumerate(found.values())]


def run_part(name: str, key: str, results: Results) -> RunPart:
    """Collect what the page shows of a run."""
    return RunPart(
        name=name,
        key=key,
        results=results,
        puzzles=or_reason(lambda: _puzzles(results)),
        records=_spaced(results.records, _TABLE_ROWS),
        filters=or_reason(lambda: _filters(results)),
        retrieval=_retrieval(results),
        commands=commands(results),
        files=config_files(results),
    )


def picture_files(part: RunPart, inputs: Sequence[InputPart]) -> dict[str, Callable[[], bytes]]:
    """Return the pictures of a run: name of the PNG to the function that encodes it."""
    files: dict[str, Callable[[], bytes]] = {}
    for one in inputs:
        if part.name == one.runs[0] and one.sheet and not isinstance(one.sheet, str):
            files["samples.png"] = partial(lambda sheet: png_of(one_sheet(sheet)), one.sheet)
    if not isinstance(part.puzzles, str):
        for number, page in enumerate(part.puzzles.pages):
            files[f"puzzle-{number}.png"] = partial(png_of, page)
    if isinstance(part.filters, Filters):
        random, pretrained = part.filters.random, part.filters.pretrained
        files["filters-random.png"] = lambda: random.png
        files["filters-pretrained.png"] = lambda: pretrained.png
    if isinstance(part.retrieval, EmbeddedImage):
        files["retrieval.png"] = _retrieval_file(part.results).read_bytes
    return files


def keys_of(names: Sequence[str]) -> list[str]:
    """Return an id for each name that is also safe as a folder name."""
    return [f"{n}-{re.sub(r'[^A-Za-z0-9_-]', '-', name)[-40:]}" for n, name in enumerate(names, 1)]


def _input(key: str, names: Sequence[str], results: Results) -> InputPart:
    config = results.config.data
    store = or_reason(lambda: open_store(config.first_manifest, config.cache))
    sheet = store if isinstance(store, str) else or_reason(lambda: contact_sheet(store, _SAMPLES))
    sources = getattr(results.manifest, "sources", {})
    return InputPart(
        key=key,
        runs=names,
        manifest=results.manifest,
        sources=sources if len(sources) > 1 else {},
        sheet=sheet,
        excluded=or_reason(lambda: read_excluded(results.shard_folder, _EXCLUDED)),
    )


def _spaced(records: Sequence[MetricsRecord], num: int) -> list[MetricsRecord]:
    """Pick at most `num` records, evenly spaced, including the first and the last."""
    if len(records) <= num:
        return list(records)
    return [records[round(i * (len(records) - 1) / (num - 1))] for i in range(num)]


def _puzzles(results: Results) -> Puzzles:
    if results.is_transfer:
        raise ConfigError("This run is only a transfer: it has no pretext.")
    return puzzles(pretraining_of(results.config), _PUZZLES)


def _filters(results: Results) -> Filters:
    path = results.folder / TRUNK_FILE
    if not path.exists():
        raise ConfigError(f"There is no {TRUNK_FILE} yet: the pretraining has not finished.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(results.config.seed)  # The weights that pretraining starts from.
        pretext = results.config.pretext
        assert pretext is not None, "a trunk was trained, so it had a pretext"
        trunk = build_trunk(results.config.trunk, view_px=largest_view(pretext))
    random = trunk.first_filters.detach().clone()
    load_trunk(trunk, path)
    return filters(random, trunk.first_filters.detach())


def _retrieval(results: Results) -> EmbeddedImage | str | None:
    raw = results.jobs.get("retrieval")
    if raw is None:
        return None
    trunks = list(dict.fromkeys(one["trunk"] for one in raw["results"]))
    num, k = raw["config"]["queries"], raw["config"]["neighbours"]
    alt = (
        f"{num} test images in rows, each with the {k} nearest training images "
        f"according to {', then to '.join(trunks)}."
    )
    return or_reason(lambda: stored_picture(_retrieval_file(results), alt))


def _retrieval_file(results: Results) -> Path:
    return results.folder / TRANSFER_FOLDER / PICTURE_FILE
