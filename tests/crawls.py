"""Small crawls and the shards of them: what several files of tests make."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import ShardRequest
from pipeline.ingest.gate.judge import judge
from pipeline.ingest.sources.chunks import list_chunks
from pipeline.ingest.sources.source_list import parse_sources
from pipeline.ingest.stage import make_shards
from pipeline.shards.third_party.indexing import run_here

CONFIG = ShardConfig(samples_per_shard=4)


def encoded(seed: int, image_format: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    sink = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(sink, image_format)
    return sink.getvalue()


def make_crawl(folder: Path) -> Path:
    """Write 10 distinct images of 2 classes, 2 repeats, 2 broken files, 1 image too small."""
    for seed in range(8):
        path = folder / "part" / ("cat" if seed % 2 else "dog") / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed))
    (folder / "part/cat/8.png").write_bytes(encoded(8, "PNG"))
    (folder / "part/cat/9.webp").write_bytes(encoded(9, "WEBP", (900, 700)))
    (folder / "part/dog/repeat.jpg").write_bytes(encoded(3))  # cat/3.jpg sorts first.
    (folder / "again.jpg").write_bytes(encoded(4))  # dog/4.jpg has a label.
    (folder / "part/dog/page.jpg").write_bytes(b"<html>404</html>")
    (folder / "part/dog/cut.jpg").write_bytes(encoded(20)[:400])
    (folder / "part/dog/small.jpg").write_bytes(encoded(21, size=(20, 20)))
    return folder


def job_of(sources, out: Path, config: ShardConfig = CONFIG) -> ShardRequest:
    given = sources if isinstance(sources, list) else [sources]
    return ShardRequest(out, parse_sources([str(source) for source in given], (), ()), config)


def build(sources, out: Path, config: ShardConfig = CONFIG, *, resume=False, run=run_here):
    job = job_of(sources, out, config)
    return make_shards(job, run, resume=resume, on_progress=lambda progress: None)


def chunks_of(job: ShardRequest, chunk_inputs: int = 256):
    return list_chunks(job.sources, chunk_inputs=chunk_inputs)


def judge_with(config: ShardConfig):
    """The gate in this process, as `make_part` takes it."""
    return lambda images: [judge(data, config) for data in images]


def contents(folder: Path) -> dict[str, bytes]:
    """Files that a person sees, by name."""
    files = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return {path.name: path.read_bytes() for path in files}
