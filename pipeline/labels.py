"""Classes that a pretext asks for, found in the manifests of its shards."""

from pipeline.config import ConfigError
from pipeline.data import DataConfig
from pipeline.pretext.multitask import MultitaskConfig
from pipeline.pretext.supervised import SupervisedConfig
from pipeline.shards.manifest import read_manifest
from pipeline.views import PretextConfig


def with_classes(pretext: PretextConfig, data: DataConfig) -> PretextConfig:
    """Fill in how many classes a supervised task has; other pretexts are returned as they are.

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
