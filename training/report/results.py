"""Read the results in a run's folder, finished or not, for the report."""

import itertools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import yaml

from pipeline.config import ConfigError, parse
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.excluded import ExcludedInput
from pipeline.shards.damage import DamageError
from pipeline.shards.manifest import LEDGER_NAME, Manifest, folder_of, read_manifest
from training.metrics import MetricsRecord, PretrainResult, diverged_at, read_metrics
from training.run import RunConfig
from training.run_folder import PRETRAIN_RESULT, TRANSFER_FOLDER, TRANSFER_RESULT, read_record

CHAIN_FILE = "results.json"
"""Record of a chain of stages: `seconds` of each, `commands`, and why one was skipped."""

AUDIT_FILE = "audit.json"
"""Result of `tessera audit` for the run's pretext; in the run's folder or in its audit/."""

JOBS = (
    *("svm", "low_shot", "linear", "knn", "retrieval"),
    *("finetune", "lock", "detection", "segmentation"),
)
"""Jobs of a transfer, in the order they are shown."""

_JOB_KEYS = (
    *("job", "protocol", "config", "seeds", "images", "weights", "notes", "results"),
    *("view_px", "precision"),
)
_AUDIT_KEYS = ("ok", "fingerprint", "images", "control_images", "shortcuts")
_TRANSFER_KEYS = (
    *("metric", "chance", "classes", "train_images", "test_images"),
    *("layers", "images_per_s", "config", "seconds"),
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Results:
    """The files of a run's folder."""

    folder: Path
    config: RunConfig
    commit: str | None
    versions: Mapping[str, str]
    started: datetime
    is_transfer: bool
    """Whether the folder holds only a transfer, of trunks that were trained elsewhere."""
    records: Sequence[MetricsRecord]
    pretrain: PretrainResult | None
    transfer: Mapping[str, Any] | None
    """transfer.json: summary of the job svm."""
    jobs: Mapping[str, Mapping[str, Any]]
    """transfer/JOB.json of each finished job, in the order of JOBS."""
    audit: Mapping[str, Any] | None
    chain: Mapping[str, Any]
    """CHAIN_FILE; empty if there is none."""
    manifest: Manifest | str
    """A string says why it cannot be read."""

    @property
    def shard_folder(self) -> Path:
        """Folder of the shards that the run read."""
        return Path(folder_of(self.config.data.first_manifest))

    @property
    def diverged(self) -> int | None:
        """Step from which on the loss is not finite, or None."""
        return diverged_at(self.records)

    @property
    def seconds(self) -> dict[str, float]:
        """Known durations of the stages, in the order of the chain."""
        seconds = dict(self.chain.get("seconds", {}))
        if self.pretrain:
            seconds.setdefault("pretrain", self.pretrain.seconds)
        if self.transfer:
            seconds.setdefault("transfer", self.transfer["seconds"])
        return seconds

    @property
    def skipped(self) -> str | None:
        """Why the chain skipped the transfer, or None."""
        transfer = self.chain.get("transfer")
        return transfer.get("skipped") if isinstance(transfer, dict) else None


def read_results(folder: Path) -> Results:
    """Read the results that a run has so far.

    Raises:
        ConfigError: The folder holds no run, or a file of it is damaged or of another version.
    """
    record = read_record(folder)
    config = parse(RunConfig, record.config, str(record.path))
    pretrain = _read_json(folder / PRETRAIN_RESULT, [f.name for f in fields(PretrainResult)])
    return Results(
        folder=folder,
        config=config,
        commit=record.commit,
        versions=record.versions,
        started=datetime.fromtimestamp(record.path.stat().st_mtime, timezone.utc),
        is_transfer=record.is_transfer,
        records=read_metrics(folder),
        pretrain=PretrainResult(**pretrain) if pretrain else None,
        transfer=_read_json(folder / TRANSFER_RESULT, _TRANSFER_KEYS),
        jobs=_read_jobs(folder),
        audit=_read_audit(folder),
        chain=_read_json(folder / CHAIN_FILE, []) or {},
        manifest=or_reason(lambda: read_manifest(config.data.first_manifest)),
    )


def or_reason(make: Callable[[], T]) -> T | str:
    """Return what `make` returns, or the message that says why it failed."""
    try:
        return make()
    except (ConfigError, DamageError) as error:
        return str(error)


def read_excluded(shard_folder: Path, limit: int) -> list[ExcludedInput]:
    """Read the first `limit` inputs that no shard holds.

    Raises:
        ConfigError: The ledger beside the shards is missing or damaged.
    """
    path = shard_folder / LEDGER_NAME
    try:
        with path.open(encoding="utf-8") as lines:
            return [
                ExcludedInput(**{"reason": None, "winner": None, **json.loads(line)})
                for line in itertools.islice(lines, limit)
            ]
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"ledger (={path}) cannot be read; shard again.") from None


def commands(results: Results) -> list[str]:
    """Return the commands that repeat the run with the files of `config_files`."""
    chained = results.chain.get("commands")
    if chained:
        return list(chained)
    manifest, shards = results.manifest, shlex.quote(str(results.shard_folder))
    if isinstance(manifest, Manifest):
        sources = shlex.join(manifest.config.get("sources", ["SRC"]))
        shard = f"tessera shard {sources} --out {shards} --config shard.yaml"
    else:
        shard = f"tessera shard SRC --out {shards}"
    return [
        *([] if results.is_transfer else [shard, "tessera pretrain pretrain.yaml"]),
        *(["tessera transfer transfer.yaml"] if results.transfer or results.jobs else []),
        f"tessera report {shlex.quote(str(results.config.out))}",
    ]


def config_files(results: Results) -> dict[str, str]:
    """Return the configuration of each stage: file name to YAML."""
    raw = results.config.model_dump(mode="json", exclude_none=True)
    files = {}
    if not results.is_transfer:
        if isinstance(results.manifest, Manifest):
            known = ShardConfig.model_fields
            shard = {k: v for k, v in results.manifest.config.items() if k in known}
            files["shard.yaml"] = _dump(shard)
        files["pretrain.yaml"] = _dump({k: v for k, v in raw.items() if k != "transfer"})
    if results.transfer or results.jobs:
        shared = {key: raw[key] for key in ("out", "seed", "data", "trunk")}
        files["transfer.yaml"] = _dump({**shared, "transfer": _transfer_section(results, raw)})
    return files


def _transfer_section(results: Results, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the transfer's own section: its config may not be that of the pretraining."""
    if results.transfer:
        return dict(results.transfer["config"])
    one = next(iter(results.jobs.values()))
    asked = {"jobs": [job["config"] for job in results.jobs.values()], "seeds": one["seeds"]}
    return {**raw.get("transfer", {}), **asked}


def _read_jobs(folder: Path) -> dict[str, dict[str, Any]]:
    found = {
        name: _read_json(folder / TRANSFER_FOLDER / f"{name}.json", _JOB_KEYS) for name in JOBS
    }
    return {name: raw for name, raw in found.items() if raw}


def _read_audit(folder: Path) -> dict[str, Any] | None:
    beside = _read_json(folder / AUDIT_FILE, _AUDIT_KEYS)
    return beside or _read_json(folder / "audit" / AUDIT_FILE, _AUDIT_KEYS)


def _dump(raw: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
    return text


def _read_json(path: Path, keys: Sequence[str]) -> dict[str, Any] | None:
    """Read a mapping with at least `keys`; None if the file is missing."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raw = None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} (={path}) is damaged; run that stage again.")
    lacking = [key for key in keys if key not in raw]
    if lacking:
        raise ConfigError(
            f"{path.name} (={path}) lacks {', '.join(lacking)}: it is of another version; run that "
            "stage again."
        )
    return raw
