"""The images of a bench: any folder of images or shards, made into shards and loose files."""

from pathlib import Path

import numpy as np

from pipeline.config import ConfigError
from pipeline.crawl.build import shard_specs, write_shard
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.folder import finish_folder, start_folder
from pipeline.crawl.gate import examine
from pipeline.crawl.plan import Examined, make_plan
from pipeline.crawl.sources import list_sources
from pipeline.shards.manifest import FILE_NAME, Manifest
from pipeline.shards.store import Store

SHARDS = "shards"
FILES = "files"
_SHARDS_PER_CORE = 4  # Peers hand out whole shards; each of their workers needs several.


def prepare(data: Path, scratch: Path, *, most: int, least: int, cores: int) -> Manifest:
    """Make `scratch`/shards and `scratch`/files, which hold the same encoded images.

    Args:
        data: Folder tree of images, or shards of this project: their folder or manifest.
        scratch: Folder of the run.
        most: Images taken, evenly spread over what there is.
        least: Images that a contest needs.
        cores: The number of shards grows with it.

    Raises:
        ConfigError: `data` is not there, or holds too few images.
    """
    if (data / FILE_NAME).exists() or data.name == FILE_NAME:
        store = Store(data)
        ids = _spread(store.manifest.num_samples, most)
        folder = scratch / "given"
        _write_files(store, ids, folder)
    else:
        folder = data
    manifest = _shard(folder, scratch / SHARDS, most=most, least=least, cores=cores)
    _write_files(Store(scratch / SHARDS), np.arange(manifest.num_samples), scratch / FILES)
    return manifest


def _shard(folder: Path, out: Path, *, most: int, least: int, cores: int) -> Manifest:
    found = list_sources([folder])
    sources = [found[row] for row in _spread(len(found), most)]
    config = ShardConfig(samples_per_shard=max(1, len(sources) // (_SHARDS_PER_CORE * cores)))
    examined = [Examined(source, examine(source.file, config)) for source in sources]
    plan = make_plan(examined, config)
    if plan.ledger.accepted < least:
        raise ConfigError(
            f"data (={folder}) holds {plan.ledger.accepted} usable images, fewer than the {least} "
            "of a batch; give a folder with more images."
        )
    specs = shard_specs(plan, out, config)
    start_folder(out, [folder], config, specs)
    return finish_folder(out, [folder], config, plan, [write_shard(spec) for spec in specs])


def _spread(num: int, most: int) -> list[int]:
    """Return at most `most` of `num` rows, evenly spread.

    >>> _spread(5, 9), _spread(9, 3)
    ([0, 1, 2, 3, 4], [0, 3, 6])
    """
    return [row * num // min(num, most) for row in range(min(num, most))]


def _write_files(store: Store, ids: "np.typing.ArrayLike", folder: Path) -> None:
    folder.mkdir()
    rows = np.asarray(ids, np.int64)
    for row, payload in zip(rows.tolist(), store.read(rows).payloads, strict=True):
        (folder / f"{row:08}.jpg").write_bytes(payload.tobytes())
    store.close()
