"""What the loader has done so far, and where its time went."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class LoaderCounters:
    """Sums since the loader was made, of one rank; times in seconds of the consumer's thread."""

    images: int = 0
    batches: int = 0
    bytes_read: int = 0
    """Of encoded images."""
    replaced: int = 0
    """Samples that took the place of a damaged one."""
    rebuilds: int = 0
    """Graphs built anew because an image did not decode."""
    plan_s: float = 0.0
    """Order, draws and plans."""
    read_s: float = 0.0
    """Opening shards, hashing payloads; waiting for remote shards."""
    decode_wait_s: float = 0.0
    """Waiting for the graph. Near zero: decoding keeps up, and the consumer is the limit."""
    consumer_s: float = 0.0
    """Time between two requests that the consumer spent elsewhere."""
    in_flight: int = 0
    """Batches planned but not yet taken, now."""

    def since(self, before: "LoaderCounters") -> "LoaderCounters":
        """Return the difference to an earlier copy; `in_flight` is a level and stays."""
        names = [field.name for field in fields(self) if field.name != "in_flight"]
        deltas = {name: getattr(self, name) - getattr(before, name) for name in names}
        return LoaderCounters(**deltas, in_flight=self.in_flight)

    def copy(self) -> "LoaderCounters":
        """Return a copy that later counts do not change."""
        return LoaderCounters(**{field.name: getattr(self, field.name) for field in fields(self)})
