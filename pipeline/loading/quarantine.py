"""What happens to damage in training: stop at once, or replace, record, count, and stop in time."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.shards.damage import Damage, DamageError

FILE_NAME = "quarantine.jsonl"

OnDamage = Literal["error", "quarantine"]

_JUDGED_FROM = 10_000  # A share is not judged by fewer samples, or one bad image could end a run.


@dataclass(frozen=True, slots=True)
class DamagePolicy:
    """What to do with a sample that cannot be used."""

    on_damage: OnDamage
    max_bad_fraction: float
    """Largest share of an epoch's samples that may be replaced on one rank, 0 to 1."""
    ledger: Path | None
    """JSON lines, appended by all ranks; None keeps no record."""


STOP_AT_DAMAGE = DamagePolicy("error", 0.0, None)


@dataclass(slots=True)
class Quarantine:
    """The damaged samples that a rank has met.

    A damaged sample is replaced each time the order asks for it, and recorded once.
    """

    policy: DamagePolicy
    rank: int
    _lasting: dict[int, str] = field(default_factory=dict)
    """Sample id to the reason it is excluded for good."""
    _views: dict[tuple[int, int], str] = field(default_factory=dict)
    """Sample id and its own epoch to the reason its view of that epoch is excluded."""
    _purged: dict[int, Damage] = field(default_factory=dict)
    """Intact samples that must not be shown, by id."""
    _met: set[int] = field(default_factory=set)
    """Purged samples that the order asked for and that are recorded."""

    def __contains__(self, sample: tuple[int, int]) -> bool:
        """Whether a sample (its id, its own epoch) is excluded."""
        return self.is_purged(sample[0]) or sample[0] in self._lasting or sample in self._views

    def __len__(self) -> int:
        return len(self._lasting) + len(self._views) + len(self._purged)

    def purge(self, samples: dict[int, Damage]) -> None:
        """Exclude these intact samples, too, from now on."""
        self._purged = samples

    def is_purged(self, sample_id: int) -> bool:
        """Whether a sample is excluded because it was purged."""
        return sample_id in self._purged

    def record_purged(self, sample_id: int, *, epoch: int, step: int) -> None:
        """Record, once, that the order asked for a purged sample and did not get it."""
        if sample_id not in self._met:
            self._met.add(sample_id)
            self._write(self._purged[sample_id], epoch, step)

    def admit(self, damage: Damage, *, epoch: int, step: int, view_of: int | None = None) -> None:
        """Quarantine a damaged sample.

        Args:
            damage: The damage.
            epoch: Epoch of the run, for the record.
            step: Step of the run, for the record.
            view_of: The sample's own epoch, if only its view of that epoch cannot be made: whether
                another part of the image decodes is another question.

        Raises:
            DamageError: The policy is to stop.
        """
        if self.policy.on_damage == "error":
            raise DamageError(str(damage))
        if damage.sample_id in self._lasting or (damage.sample_id, view_of) in self._views:
            return  # A batch that was ahead when another one met it.
        if view_of is None:
            self._lasting[damage.sample_id] = damage.reason
        else:
            self._views[damage.sample_id, view_of] = damage.reason
        self._write(damage, epoch, step)

    def judge(self, counts: "EpochCounts", *, samples_per_epoch: int) -> None:
        """Stop a run that replaces too much.

        Raises:
            DamageError: More than `max_bad_fraction` was replaced; tells the reasons.
        """
        seen = counts.delivered + counts.replaced + counts.purged
        judged = max(seen, min(samples_per_epoch, _JUDGED_FROM))
        if counts.replaced <= self.policy.max_bad_fraction * judged:
            return
        met = Counter([*self._lasting.values(), *self._views.values()])
        reasons = ", ".join(f"{why} {n}" for why, n in met.most_common())
        raise DamageError(
            f"{counts.replaced} of {seen} samples of this epoch were replaced, more than "
            f"max_bad_fraction (={self.policy.max_bad_fraction}) allows ({reasons}): "
            f"look at {self.policy.ledger}, and restore the shards or shard again."
        )

    def _write(self, damage: Damage, epoch: int, step: int) -> None:
        if self.policy.ledger is not None:
            row = {**asdict(damage), "epoch": epoch, "step": step, "rank": self.rank}
            _append(self.policy.ledger, json.dumps(row) + "\n")


@dataclass(slots=True)
class EpochCounts:
    """What a rank has delivered of an epoch, since it began or was resumed."""

    first_step: int
    delivered: int = 0
    """Samples delivered as the order planned."""
    replaced: int = 0
    """Samples that replaced a damaged one."""
    purged: int = 0
    """Samples that replaced a purged one."""

    def close(self, epoch: int, *, planned: int) -> None:
        """Check at the end of an epoch that nothing was lost or added."""
        if self.delivered + self.replaced + self.purged != planned:
            raise RuntimeError(
                f"epoch {epoch}: delivered (={self.delivered}) + replaced (={self.replaced}) + "
                f"purged (={self.purged}) must equal planned (={planned}): the loader lost or "
                "repeated samples."
            )


def _append(path: Path, line: str) -> None:
    """Append a line in one write, which ranks on one node do not tear."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
