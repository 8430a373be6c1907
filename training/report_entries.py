"""The scores of a run's transfer as the report tells them, one after the other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.report_charts import Reach
from training.results import JOBS, Results

_ALIKE = ("config", "seeds", "images", "random_trunk")
"""Keys of a job's record that must not differ where scores are compared."""
_OF_THE_SECTION = ("view_px", "precision")
"""Keys of a transfer's section that every job obeys."""
_INDIFFERENT = frozenset({"manifest", "weights", "batch", "threads"})
"""Keys of an older transfer's section that its scores do not depend on, or that are elsewhere."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One score: a row of the table."""

    run: str
    job: str
    label: str
    """The job, and its k where it has several."""
    trunk: str
    layer: str
    metric: str
    reach: Reach
    train_images: int
    test_images: int
    seconds: float | None
    """None where it is not known."""
    overlap: Mapping[str, int] | None
    """Images whose bytes are in both sets; None where nobody looked."""
    shots: int | None
    """Images of each class that were learned from; None where that is all of them."""

    @property
    def shared(self) -> int | None:
        """Images in several sets, all pairs added."""
        return None if self.overlap is None else sum(self.overlap.values())

    @property
    def value(self) -> tuple[Any, ...]:
        """All that tells scores apart, but for the run and the time."""
        return (self.label, self.trunk, self.layer, self.metric, self.reach, self.test_images)


def entries_of(results: Results, run: str) -> list[Entry]:
    """List the scores of a run, in the order of JOBS.

    Args:
        results: Of the run. Where it has no record of the job svm, transfer.json serves.
        run: What the page calls it.
    """
    found = [entry for raw in results.jobs.values() for entry in _of_job(raw, run)]
    if "svm" not in results.jobs and results.transfer:
        return [*_of_summary(results.transfer, run), *found]
    return found


def differences(runs: Mapping[str, Results]) -> list[str]:
    """Say in which things runs side by side differ that their scores depend on.

    Args:
        runs: By what the page calls them.
    """
    found = []
    manifests = {_fingerprint(results) for results in runs.values()}
    if len(manifests) > 1:
        found.append("the images of the pretraining differ")
    trunks = {results.config.trunk.model_dump_json() for results in runs.values()}
    if len(trunks) > 1:
        found.append("the architectures differ")
    lacking: dict[str, list[str]] = {}
    for job in JOBS:
        every = {name: _protocol(results, job) for name, results in runs.items()}
        known = [one for one in every.values() if one]
        found += _differing(job, known)
        if known and len(known) < len(every):
            without = ", ".join(name for name, one in every.items() if not one)
            lacking.setdefault(without, []).append(job)
    found += [f"no {', '.join(jobs)} of {without}" for without, jobs in lacking.items()]
    return found


def _of_job(raw: Mapping[str, Any], run: str) -> Iterator[Entry]:
    for one in raw["results"]:
        details = one["details"]
        k = details.get("shots", details.get("neighbours") if one["job"] == "knn" else None)
        yield Entry(
            run=run,
            job=one["job"],
            label=one["job"] if k is None else f"{one['job']}, k = {k}",
            trunk=one["trunk"],
            layer=one["layer"],
            metric=one["metric"],
            reach=Reach(one["score"], *one["range"]),
            train_images=one["train_images"],
            test_images=one["test_images"],
            seconds=one["seconds"],
            overlap=one["overlap"],
            shots=details.get("shots"),
        )


def _of_summary(raw: Mapping[str, Any], run: str) -> Iterator[Entry]:
    for trunk, by_layer in raw["layers"].items():
        for layer, one in by_layer.items():
            score = one["score"]
            yield Entry(
                run=run,
                job="svm",
                label="svm",
                trunk=trunk,
                layer=layer,
                metric=raw["metric"],
                reach=Reach(score, score, score),
                train_images=raw["train_images"],
                test_images=raw["test_images"],
                seconds=None,
                overlap=raw.get("overlap"),
                shots=None,
            )


def _protocol(results: Results, job: str) -> dict[str, Any] | None:
    """Return what the scores of a job depend on beside the trunk; None where it has not run."""
    raw, summary = results.jobs.get(job), results.transfer
    section = summary["config"] if summary else _section(results)
    if raw:
        shared = {key: raw.get(key, section.get(key)) for key in _OF_THE_SECTION}
        return {**{key: raw.get(key) for key in _ALIKE}, **shared}
    if job != "svm" or summary is None:
        return None
    counts = ("train_images", "test_images", "classes", "fingerprint", "seed")
    config = {key: value for key, value in section.items() if key not in _INDIFFERENT}
    return {"config": config, **{key: summary.get(key) for key in counts}}


def _section(results: Results) -> dict[str, Any]:
    """Return the run's own section: it stands for one that nobody has recorded."""
    chosen = results.config.transfer
    return chosen.model_dump(mode="json") if chosen else {}


def _differing(job: str, known: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in which keys the records of a job differ; those of its configuration one by one."""
    if len({frozenset(one) for one in known}) > 1:
        return [f"{job} was recorded by different versions, which do not tell the same of it"]
    flat = [
        {key: value for key, value in one.items() if key != "config"} | one["config"]
        for one in known
    ]
    keys = dict.fromkeys(key for one in flat for key in one)
    differ = [key for key in keys if len({repr(one.get(key)) for one in flat}) > 1]
    return [f"{job} differs in {', '.join(differ)}"] if differ else []


def _fingerprint(results: Results) -> str:
    """Name the pretraining's images; where they are, if nobody can read them."""
    manifest = results.manifest
    return str(results.shard_folder) if isinstance(manifest, str) else manifest.fingerprint
