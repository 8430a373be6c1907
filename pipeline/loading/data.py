"""The `data:` section of a run, and the shards it opens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator
from typing_extensions import Self

from pipeline.config import Config, ConfigError
from pipeline.loading.mixture import DataSet, Mixture, orders
from pipeline.loading.order import OrderConfig
from pipeline.loading.quarantine import OnDamage
from pipeline.loading.stream import StreamConfig
from pipeline.pretext.multitask import MultitaskConfig, PretextConfig
from pipeline.pretext.supervised import SupervisedConfig
from pipeline.remote.cache import CacheConfig, ShardCache
from pipeline.remote.location import is_remote
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store

Location = Annotated[str, BeforeValidator(lambda v: str(v) if isinstance(v, Path) else v)]
"""A path or a URL; a Path would fold the slashes of a URL."""


class SetConfig(Config):
    """One of several sets of shards that are read together."""

    manifest: Location
    """A folder of shards, or the manifest in it; a path or a URL."""
    weight: int = Field(gt=0)
    """Its share of every global batch, relative to the other weights."""


class DataConfig(Config):
    """Which shards are read, and how; exactly one of manifest, mixture and stream."""

    manifest: Location | None = None
    """A folder of shards, or the manifest in it; a path or a URL."""
    mixture: tuple[SetConfig, ...] | None = Field(None, min_length=1)
    """Several sets of shards, each with its weight."""
    stream: StreamConfig | None = None
    """Shards without an index, read in passing: no exact order, no exact resume."""
    threads: int = Field(1, gt=0)
    """CPU threads that decode, for each rank."""
    prefetch: int = Field(2, gt=0)
    """Batches decoded ahead of the training step."""
    on_damage: OnDamage = "error"
    """What to do with a sample whose bytes are damaged or do not decode: stop, or replace it by one
    that the order names, record it in OUT/quarantine.jsonl and go on."""
    max_bad_fraction: float = Field(0.01, ge=0, lt=1)
    """Largest share of an epoch that may be replaced before the run stops."""
    cache: CacheConfig = CacheConfig()
    """Where shards that have a URL are kept on this node."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("manifest", "mixture", "stream") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of manifest, mixture and stream (={', '.join(given) or 'none'})."
            )
        return self

    @property
    def sets(self) -> tuple[SetConfig, ...]:
        """The indexed sets; one manifest is a mixture of one."""
        if self.manifest:
            return (SetConfig(manifest=self.manifest, weight=1),)
        return self.mixture or ()

    @property
    def first_manifest(self) -> str:
        """The manifest of the first set.

        Raises:
            ConfigError: A stream has none.
        """
        if not self.sets:
            raise ConfigError("data.stream has no manifest: give transfer.data, or shards.")
        return self.sets[0].manifest

    def absolute(self) -> dict[str, object]:
        """Return the section with absolute paths, for processes that start in another folder."""
        raw = self.model_dump(mode="json")
        for one in [raw, *(raw["mixture"] or ())]:
            if one["manifest"] and not is_remote(one["manifest"]):
                one["manifest"] = str(Path(one["manifest"]).absolute())
        if self.stream:
            raw["stream"] = self.stream.absolute().model_dump(mode="json")
        raw["cache"]["folder"] = str(self.cache.folder.absolute())
        return raw


def check_data(data: DataConfig, order: OrderConfig, *, seed: int, world_size: int) -> None:
    """Find what would stop the loader before anything is started.

    Raises:
        ConfigError: The shards are not there or too few, or there are more ranks than lanes.
    """
    if data.stream:
        data.stream.check(order, world_size=world_size)
        return
    counts = [read_manifest(one.manifest).shard_counts for one in data.sets]
    weights = [one.weight for one in data.sets]
    orders(counts, weights, order, seed=seed)[0].lanes_of(0, world_size)


def open_mixture(
    data: DataConfig, order: OrderConfig, *, seed: int
) -> tuple[Mixture, ShardCache | None]:
    """Open all sets of a section; the cache is there only where a shard has a URL."""
    stores = [Store(one.manifest) for one in data.sets]
    cache = _share_cache(stores, data.cache)
    if data.on_damage == "error":
        for store in stores:
            store.check()
    counts = [store.manifest.shard_counts for store in stores]
    made = orders(counts, [one.weight for one in data.sets], order, seed=seed)
    return Mixture([DataSet(s, o) for s, o in zip(stores, made, strict=True)]), cache


def open_store(location: str | Path, cache: CacheConfig) -> Store:
    """Open one set, whole on this node or remote."""
    store = Store(location)
    _share_cache([store], cache)
    store.check()
    return store


def _share_cache(stores: Sequence[Store], config: CacheConfig) -> ShardCache | None:
    remote = [store for store in stores if store.is_remote]
    if not remote:
        return None
    cache = ShardCache(config)
    for store in remote:
        store.use(cache)
    return cache


def with_classes(pretext: PretextConfig, data: DataConfig) -> PretextConfig:
    """Fill in how many classes a supervised task has; other pretexts are returned unchanged.

    Raises:
        ConfigError: The shards have no labels, or not the number of classes that the task says.
    """
    if isinstance(pretext, SupervisedConfig):
        return _filled(pretext, data)
    if isinstance(pretext, MultitaskConfig):
        tasks = [_filled(t, data) if isinstance(t, SupervisedConfig) else t for t in pretext.tasks]
        return pretext.model_copy(update={"tasks": tuple(tasks)})
    return pretext


def _filled(task: SupervisedConfig, data: DataConfig) -> SupervisedConfig:
    if data.stream:
        raise ConfigError(
            "pretext (=supervised) needs labels, and shards of data.stream have none; give "
            "data.manifest."
        )
    found = {one.manifest: read_manifest(one.manifest).classes or () for one in data.sets}
    (first, names), *others = found.items()
    if len(names) < 2:
        raise ConfigError(
            f"manifest (={first}) has {len(names)} classes, the pretext supervised needs at least "
            "2. Shard a tree whose last folder level names the classes."
        )
    for place, theirs in others:
        if theirs != names:
            raise ConfigError(
                f"manifest (={place}) has other classes than {first}, so that a label would mean "
                "two things; leave one out of data.mixture."
            )
    if task.classes not in (None, len(names)):
        raise ConfigError(
            f"pretext.classes (={task.classes}) must be the {len(names)} of the manifest "
            f"(={first}); leave it out."
        )
    return task.model_copy(update={"classes": len(names)})
