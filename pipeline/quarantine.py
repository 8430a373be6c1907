"""What happens to damage in training: stop at once, or replace, record, count, and stop in time."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.shards.store import Damage, DamageError

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
    reasons: dict[int, str] = field(default_factory=dict)
    """Sample id to the reason it is left out."""

    def admit(self, damage: Damage, *, epoch: int, step: int) -> None:
        """Take in a damaged sample.

        Raises:
            DamageError: The policy is to stop.
        """
        if self.policy.on_damage == "error":
            raise DamageError(str(damage))
        if damage.sample_id in self.reasons:
            return  # A batch that was ahead when another one met it.
        self.reasons[damage.sample_id] = damage.reason
        if self.policy.ledger is not None:
            row = {**asdict(damage), "epoch": epoch, "step": step, "rank": self.rank}
            _append(self.policy.ledger, json.dumps(row) + "\n")

    def judge(self, counts: "EpochCounts", *, samples_per_epoch: int) -> None:
        """Stop a run that replaces too much.

        Raises:
            DamageError: More than `max_bad_fraction` was replaced; tells the reasons.
        """
        seen = counts.delivered + counts.replaced
        judged = max(seen, min(samples_per_epoch, _JUDGED_FROM))
        if counts.replaced <= self.policy.max_bad_fraction * judged:
            return
        reasons = ", ".join(f"{why} {n}" for why, n in Counter(self.reasons.values()).most_common())
        raise DamageError(
            f"{counts.replaced} of {seen} samples of this epoch were replaced, more than "
            f"max_bad_fraction (={self.policy.max_bad_fraction}) allows ({reasons}): "
            f"look at {self.policy.ledger}, and restore the shards or shard again."
        )


@dataclass(slots=True)
class EpochCounts:
    """What a rank has delivered of an epoch, since it began or was resumed."""

    first_step: int
    delivered: int = 0
    """Samples that stood where the order put them."""
    replaced: int = 0
    """Samples that took the place of a damaged one."""

    def close(self, epoch: int, *, planned: int) -> None:
        """Check at the end of an epoch that nothing was lost or added."""
        if self.delivered + self.replaced != planned:
            raise RuntimeError(
                f"epoch {epoch}: delivered (={self.delivered}) + replaced (={self.replaced}) must "
                f"equal planned (={planned}): the loader lost or repeated samples."
            )


def _append(path: Path, line: str) -> None:
    """Append a line in one write, which ranks on one node do not tear."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
