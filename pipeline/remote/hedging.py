"""How fast transfers usually are, and so which one is late enough to race a second one against."""

import statistics
import time
from collections import deque
from dataclasses import dataclass, field

_RECENT = 32
_FEWEST = 5
"""Transfers that say what is usual."""
_SHARE = 0.1
"""Of all transfers may be raced; where everything is slow, more requests would not help."""
_FLOOR = 0.05
"""Seconds added to what is usual, so that the noise of very fast servers starts no race."""


@dataclass(slots=True)
class Lap:
    """One request under way; seconds of the monotonic clock."""

    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    """When its first bytes came."""
    num_bytes: int = 0
    """Bytes that came."""

    def add(self, num_bytes: int) -> None:
        """Count bytes that came now."""
        if self.first is None:
            self.first = time.monotonic()
        self.num_bytes += num_bytes


class TransferStats:
    """Median wait for the first bytes and median speed after them, of the recent transfers."""

    def __init__(self, slow_after: float) -> None:
        self._slow_after = slow_after
        self._waits: deque[float] = deque(maxlen=_RECENT)
        self._speeds: deque[float] = deque(maxlen=_RECENT)
        self._races = 2.0
        """Races that may be started; finished transfers earn more."""

    def finish(self, lap: Lap) -> None:
        """Learn from a request that came to its end."""
        if lap.first is None:
            return
        self._waits.append(lap.first - lap.started)
        self._speeds.append(lap.num_bytes / max(1e-6, time.monotonic() - lap.first))
        self._races = min(self._races + _SHARE, _RECENT * _SHARE)

    def is_late(self, lap: Lap) -> bool:
        """Tell whether a usual request would have had these bytes `slow_after` times sooner.

        So a request that is ten times slower is found after a few usual waits for a first byte,
        not after several times the usual time of a whole file.
        """
        if len(self._waits) < _FEWEST:
            return False
        usual = statistics.median(self._waits) + lap.num_bytes / statistics.median(self._speeds)
        return time.monotonic() - lap.started > _FLOOR + self._slow_after * usual

    def may_race(self) -> bool:
        """Take leave to start one more race."""
        if self._races < 1:
            return False
        self._races -= 1
        return True
