import dataclasses
import io
import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
import xxhash
from crawls import CONFIG, build, chunks_of, contents, encoded, job_of, judge_with, make_crawl
from PIL import Image

from pipeline.dali.decode import decode_rgb
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.folder import start_folder
from pipeline.ingest.parts import PartSpec, close_sandbox, make_part
from pipeline.ingest.plan import make_plan
from pipeline.ingest.stage import shard_chunks
from pipeline.ingest.write import make_shard, shard_specs
from pipeline.shards.damage import DamageError
from pipeline.shards.index import ShardIndex, read_index
from pipeline.shards.manifest import ShardInfo, read_manifest
from pipeline.shards.third_party.indexing import run_here


@pytest.fixture(scope="module", autouse=True)
def _no_process_is_left():
    yield
    close_sandbox()


@pytest.fixture
def crawl(tmp_path):
    return make_crawl(tmp_path / "crawl")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The crawl and its shards, for tests that only look."""
    folder = tmp_path_factory.mktemp("made")
    crawl = make_crawl(folder / "crawl")
    return crawl, folder / "out", build(crawl, folder / "out")


def specs_of(crawl, out, config=CONFIG):
    """The parts and the plan are there, the shards are not yet."""
    job = job_of(crawl, out, config)
    start_folder(job)
    parts = [PartSpec(job.parts, chunk, config) for chunk in chunks_of(job)]
    num_inputs = sum(make_part(part, judge_with(config)).inputs for part in parts)
    plan = make_plan([part.table_path for part in parts], num_inputs, job.plan, config)
    return shard_specs(plan, out, job.parts, config)


def index_of(folder, shard: ShardInfo) -> ShardIndex:
    return read_index(folder / shard.index, sha256=shard.index_sha256)


def test_every_input_is_accounted_for(made):
    _, out, manifest = made
    assert manifest.ledger.model_dump() == {
        "inputs": 15,
        "accepted": 10,
        "quarantined": {"not_image": 1, "truncated": 1},
        "filtered": {"min_side": 1},
        "duplicate": 2,
        "near_duplicate": 0,
    }
    assert manifest.sources == {"crawl": manifest.ledger}
    lines = (out / "ledger.jsonl").read_text().splitlines()
    dog, source = "crawl/part/dog", {"source": "crawl"}
    duplicate = {"verdict": "duplicate", **source}
    assert [json.loads(line) for line in lines] == [
        {"path": "crawl/again.jpg", "winner": f"{dog}/4.jpg", **duplicate},
        {"path": f"{dog}/cut.jpg", "verdict": "quarantined", "reason": "truncated", **source},
        {"path": f"{dog}/page.jpg", "verdict": "quarantined", "reason": "not_image", **source},
        {
            "path": f"{dog}/repeat.jpg",
            "winner": "crawl/part/cat/3.jpg",
            **duplicate,
            "label": "dog",
            "label_conflict": ["cat", "dog"],
        },
        {"path": f"{dog}/small.jpg", "verdict": "filtered", "reason": "min_side", **source},
    ]


def test_the_manifest_reads_back_and_names_no_folder_of_this_machine(made):
    crawl, out, manifest = made
    assert read_manifest(out) == manifest
    assert [shard.num_samples for shard in manifest.shards] == [3, 3, 4]
    assert manifest.classes == ("cat", "dog")
    options = {"include": [], "exclude": [], "weight": 1, "labels": True}
    assert manifest.config == {
        **CONFIG.model_dump(mode="json"),
        "sources": ["crawl"],
        "source_options": {"crawl": options},
    }
    for name, content in contents(out).items():
        assert str(crawl.parent).encode() not in content, name


def test_nothing_else_is_left(made):
    _, out, manifest = made
    shards = [f"shard-{n:06}.{e}" for n in range(3) for e in ("json", "ledger.parquet", "parquet")]
    tars = [shard.name for shard in manifest.shards]
    others = [".inputs", "ledger.jsonl", "left_out.parquet", "manifest.json", "shard_config.json"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*shards, *tars, *others])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own.
def test_webdataset_reads_the_shards_sample_for_sample(made):
    crawl, out, manifest = made
    urls = [str(out / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 10
    for sample in samples:
        about = json.loads(sample["json"])
        pixels = decode_rgb(sample["jpg"])
        assert pixels is not None
        assert (about["width"], about["height"]) == pixels.shape[1::-1]
        source = crawl.parent / about["source"]
        is_contradicted = source.name == "3.jpg"  # A copy of it lies among the dogs.
        assert about.get("label") == (None if is_contradicted else source.parent.name)
        assert set(about) - {"label"} == {"source", "width", "height"}


def test_the_index_points_at_the_images(made):
    _, out, manifest = made
    for shard in manifest.shards:
        tar = (out / shard.name).read_bytes()
        index = index_of(out, shard)
        assert len(index) == shard.num_samples
        for row in range(len(index)):
            payload = tar[index.offsets[row] :][: index.sizes[row]]
            pixels = decode_rgb(payload)
            assert pixels is not None
            assert pixels.shape == (index.heights[row], index.widths[row], 3)
            assert min(pixels.shape[:2]) <= CONFIG.max_side
            assert xxhash.xxh3_64_intdigest(payload) == index.hashes[row]


def test_each_shard_has_a_ledger_of_its_inputs(made):
    crawl, out, manifest = made
    for shard in manifest.shards:
        index = index_of(out, shard)
        rows = pq.read_table(out / str(shard.ledger)).to_pylist()
        assert tuple(row["key"] for row in rows) == index.keys
        assert [row["stored_hash"] for row in rows] == index.hashes.tolist()
        for row in rows:
            data = (crawl.parent / row["name"]).read_bytes()
            assert row["content_hash"] == xxhash.xxh3_128_hexdigest(data)
            assert row["key"] == row["content_hash"][:20]
            with Image.open(io.BytesIO(data)) as image:
                assert (row["format"], row["width"], row["height"]) == (image.format, *image.size)
            assert row["near_words"]


def test_pictures_show_what_is_left_out(made):
    _, out, _ = made
    rows = pq.read_table(out / "left_out.parquet").to_pylist()
    kinds = {(row["verdict"], row["reason"]) for row in rows}
    assert kinds == {("filtered", "min_side"), ("duplicate", None)}
    for row in rows:
        with Image.open(io.BytesIO(row["thumbnail"])) as image:
            assert max(image.size) <= 96


def test_labels_are_class_numbers(made):
    _, out, manifest = made
    labels = np.concatenate([index_of(out, shard).labels for shard in manifest.shards])
    assert [(labels == number).sum() for number in (-1, 0, 1)] == [1, 5, 4]


def test_the_same_sources_give_the_same_bytes(made, tmp_path):
    _, out, _ = made
    moved = make_crawl(tmp_path / "crawl")
    build(moved, tmp_path / "two")
    assert contents(out) == contents(tmp_path / "two")


@pytest.mark.parametrize("chunk_inputs", [1, 2, 7])
def test_chunks_and_their_order_change_nothing(made, tmp_path, chunk_inputs):
    crawl, out, _ = made
    job = job_of(crawl, tmp_path / "out")
    chunks = chunks_of(job, chunk_inputs)
    random.Random(chunk_inputs).shuffle(chunks)
    shard_chunks(chunks, job, run_here, on_progress=lambda progress: None)
    assert contents(tmp_path / "out") == contents(out)


def test_equal_images_of_two_sources_are_kept_once(tmp_path):
    for name, seeds in (("a", (1, 2)), ("b", (2, 3, 4))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            (tmp_path / name / f"{seed}.jpg").write_bytes(encoded(seed))
    made = build([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert made.ledger.describe().endswith("+ 1 duplicate")
    counts = {name: (one.inputs, one.accepted, one.duplicate) for name, one in made.sources.items()}
    assert counts == {"a": (2, 2, 0), "b": (3, 2, 1)}


def test_captions_and_other_words_of_a_source_are_carried(tmp_path):
    image = encoded(1)
    with (tmp_path / "cats.tar").open("wb") as file, webdataset.TarWriter(file) as writer:
        about = {"url": "http://host/1.jpg", "license": "CC0"}
        writer.write({"__key__": "0", "jpg": image, "txt": "a cat", "json": about})
    made = build(tmp_path / "cats.tar", tmp_path / "out")
    tar = (tmp_path / "out" / made.shards[0].name).read_bytes()
    index = index_of(tmp_path / "out", made.shards[0])
    (row,) = pq.read_table(tmp_path / "out" / str(made.shards[0].ledger)).to_pylist()
    text = tar[tar.index(b'{"caption"') :]
    told = json.loads(text[: text.index(b"\0")])
    assert len(index) == 1
    assert told["caption"] == row["caption"] == "a cat"
    assert told["metadata"]["url"] == "http://host/1.jpg"


def test_images_can_be_stored_as_webp(crawl, tmp_path):
    config = ShardConfig(store_as="webp", max_side=320)
    made = build(crawl, tmp_path / "out", config)
    index = index_of(tmp_path / "out", made.shards[0])
    tar = (tmp_path / "out" / made.shards[0].name).read_bytes()
    for row in range(len(index)):
        payload = tar[index.offsets[row] :][: index.sizes[row]]
        pixels = decode_rgb(payload)
        assert pixels is not None
        assert pixels.shape == (index.heights[row], index.widths[row], 3)


def test_second_write_returns_the_first_report(crawl, tmp_path):
    spec, *_ = specs_of(crawl, tmp_path / "out")
    first = make_shard(spec)
    before = spec.path("tar").stat()
    assert make_shard(spec) == first
    assert spec.path("tar").stat().st_ino == before.st_ino  # Not written again.


def test_another_plan_writes_the_shard_again(crawl, tmp_path):
    spec, *_ = specs_of(crawl, tmp_path / "out")
    first = make_shard(spec)
    fewer = dataclasses.replace(spec, rows=(spec.rows[0] + 1, spec.rows[1]))
    assert make_shard(fewer).num_samples == first.num_samples - 1
    assert make_shard(spec) == first


def test_damage_of_a_part_is_found_and_mended_by_a_second_run(made, tmp_path):
    crawl, expected, _ = made
    out = tmp_path / "out"
    for spec in specs_of(crawl, out):
        first = spec.parts / next(spec.parts.glob("*.bin")).name
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    with pytest.raises(DamageError, match=r"are not what was written there\. Run the same"):
        build(crawl, out, resume=True)
    assert not (out / "manifest.json").exists()
    build(crawl, out, resume=True)
    assert contents(out) == contents(expected)


@pytest.mark.parametrize("lost", ["tar", "parquet", "json", "ledger.parquet", "cut tar"])
def test_a_shard_that_is_not_whole_is_written_again(crawl, tmp_path, lost):
    out = tmp_path / "out"
    build(crawl, out)
    whole = contents(out)
    if lost == "cut tar":
        (out / "shard-000001.tar").write_bytes(whole["shard-000001.tar"][:-512])
    else:
        (out / f"shard-000001.{lost}").unlink()
    (out / ".shard-000002.tar.77.partial").write_bytes(b"half")
    (out / "shard-000009.tar").write_bytes(b"of an older plan")
    build(crawl, out, resume=True)
    assert contents(out) == whole
    assert not list(out.glob(".*.partial"))


def test_a_finished_folder_is_not_made_again(crawl, tmp_path):
    out = tmp_path / "out"
    made = build(crawl, out)
    before = (out / "manifest.json").stat().st_ino
    assert build(crawl, out, resume=True, run=None) == made  # There is nothing to run.
    assert (out / "manifest.json").stat().st_ino == before


def test_a_new_file_makes_the_shards_anew_on_resume(crawl, tmp_path):
    out = tmp_path / "out"
    build(crawl, out)
    (crawl / "part/cat/new.jpg").write_bytes(encoded(99))
    again = build(crawl, out, resume=True)
    build(crawl, tmp_path / "fresh")
    assert again.ledger.accepted == 11
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_file_that_changes_before_it_is_read_is_named(crawl, tmp_path):
    job = job_of(crawl, tmp_path / "out")
    chunks = chunks_of(job)
    (crawl / "part/cat/1.jpg").write_bytes(encoded(98))
    (crawl / "part/cat/3.jpg").unlink()
    made = shard_chunks(chunks, job, run_here, on_progress=lambda progress: None)
    assert made.ledger.quarantined["changed"] == 2
    assert made.ledger.inputs == 15
    assert "crawl/part/cat/3.jpg" in (tmp_path / "out/ledger.jsonl").read_text()
