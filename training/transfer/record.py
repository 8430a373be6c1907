"""Files of a transfer: one for each job on each trunk, one for each job, and tables of all."""

import csv
import inspect
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.atomic import write_atomic, write_json
from training.run_folder import TRANSFER_FOLDER, TRANSFER_RESULT
from training.transfer.config import Job, TransferConfig
from training.transfer.job import Score, TransferTask

RESULTS_FILE = "results.csv"

_COLUMNS = (
    *("job", "trunk", "layer", "metric", "score", "low", "high"),
    *("train_images", "test_images", "seconds"),
)
_SUMMARY_DETAILS = ("cost", "dimension")


def pair_file(out: Path, job: str, trunk: str) -> Path:
    """Return the path of the scores of one job on one trunk."""
    return out / TRANSFER_FOLDER / "parts" / f"{job}-{trunk}.json"


def write_pair(path: Path, key: str, scores: Sequence[Score]) -> None:
    """Write the scores of one job on one trunk, with the hash of what they depend on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"key": key, "scores": [asdict(score) for score in scores]})


def read_pair(path: Path, key: str) -> list[Score] | None:
    """Read scores written by `write_pair`; None if missing or of another key."""
    try:
        raw = json.loads(path.read_text())
        if raw["key"] != key:
            return None
        return [Score(**{**one, "scores": tuple(one["scores"])}) for one in raw["scores"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def entry_of(score: Score, task: TransferTask) -> dict[str, Any]:
    """Return a score as an entry of the results."""
    return {
        "job": score.job,
        "trunk": score.trunk,
        "layer": score.layer,
        "metric": score.metric,
        "score": score.score,
        "scores": list(score.scores),
        "range": [min(score.scores), max(score.scores)],
        "train_images": score.train_images,
        "test_images": score.test_images,
        "overlap": task.overlap,
        "seconds": score.seconds,
        "details": score.details,
    }


def uneven(job: str, scores: Iterable[Score]) -> list[str]:
    """Return a note where the trainings of a job differ in length: scores are compared."""
    steps = [number for score in scores for number in score.details.get("steps", ())]
    if len(set(steps)) < 2:
        return []
    return [
        f"{job}: max_minutes ended trainings after {min(steps)} to {max(steps)} steps, so its "
        "trunks are not on equal terms; to compare them, remove max_minutes"
    ]


def write_job(
    out: Path, job: Job, entries: Sequence[dict[str, Any]], about: dict[str, Any]
) -> None:
    """Write OUT/transfer/JOB.json: protocol, config and results of a job."""
    record = {
        "job": job.name,
        "protocol": inspect.getdoc(type(job)),
        "metrics": list(dict.fromkeys(entry["metric"] for entry in entries)),
        "config": job.model_dump(mode="json"),
        **about,
        "seconds": sum(entry["seconds"] for entry in entries),
        "results": list(entries),
    }
    write_json(out / TRANSFER_FOLDER / f"{job.name}.json", record)


def write_table(out: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write OUT/results.csv, one line for each entry."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for entry in entries:
        low, high = entry["range"]
        writer.writerow({**entry, "low": low, "high": high})
    write_atomic(out / RESULTS_FILE, sink.getvalue().encode())


def summarize(
    entries: Sequence[dict[str, Any]],
    task: TransferTask,
    config: TransferConfig,
    about: dict[str, Any],
) -> dict[str, Any] | None:
    """Summarize the job svm for the report; None where it has not run."""
    ours = [entry for entry in entries if entry["job"] == "svm"]
    if not ours:
        return None
    layers: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in ours:
        kept = {key: entry["details"][key] for key in _SUMMARY_DETAILS}
        layers.setdefault(entry["trunk"], {})[entry["layer"]] = {"score": entry["score"], **kept}
    scores = {name: {k: v["score"] for k, v in by.items()} for name, by in layers.items()}
    rates = {entry["trunk"]: entry["details"]["images_per_s"] for entry in ours}
    learned = _classes(task)
    return {
        "metric": ours[0]["metric"],
        **scores,
        **{f"best_{name}": max(by.values()) for name, by in scores.items()},
        "chance": _chance(task),
        "classes": len(learned),
        "classes_left_out": [c for k, c in enumerate(task.classes) if k not in learned],
        "train_images": ours[0]["train_images"],
        "test_images": ours[0]["test_images"],
        "overlap": task.overlap,
        "layers": layers,
        "images_per_s": rates,
        "config": config.model_dump(mode="json"),
        **about,
        "seconds": sum(entry["seconds"] for entry in ours),
    }


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write OUT/transfer.json."""
    write_json(out / TRANSFER_RESULT, summary)


def _classes(task: TransferTask) -> set[int]:
    targets = task.train.targets
    found = np.flatnonzero((targets == 1).any(axis=0)) if targets.ndim == 2 else np.unique(targets)
    return set(found.tolist())


def _chance(task: TransferTask) -> float:
    """Return the chance level, percent; for average precision about the share of positives."""
    targets = task.test.targets
    if targets.ndim == 1:
        return 100 / len(_classes(task))
    counted = targets >= 0
    return 100 * float(((targets == 1).sum(axis=0) / np.maximum(counted.sum(axis=0), 1)).mean())
