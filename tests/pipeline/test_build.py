import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError
from pipeline.crawl.build import shard_specs, write_shard
from pipeline.crawl.config import ShardConfig
from pipeline.crawl.dedupe import pick_winners
from pipeline.crawl.folder import check_folder, finish_folder, start_folder
from pipeline.crawl.gate import Verdict, examine
from pipeline.crawl.plan import Examined, Plan, make_plan
from pipeline.crawl.sources import Source, list_sources
from pipeline.dali.decode import decode_rgb
from pipeline.shards.index import ShardIndex, read_index
from pipeline.shards.manifest import ShardInfo, read_manifest

CONFIG = ShardConfig(samples_per_shard=4)


def encoded(seed: int, image_format: str = "JPEG", size: tuple[int, int] = (64, 48)) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    sink = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).save(sink, image_format)
    return sink.getvalue()


@pytest.fixture
def crawl(tmp_path):
    """10 distinct images of 2 classes, 2 repeats, 2 broken files, 1 image too small."""
    folder = tmp_path / "crawl"
    for seed in range(8):
        path = folder / "part" / ("cat" if seed % 2 else "dog") / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(seed))
    (folder / "part/cat/8.png").write_bytes(encoded(8, "PNG"))
    (folder / "part/cat/9.webp").write_bytes(encoded(9, "WEBP", (900, 700)))
    (folder / "part/dog/repeat.jpg").write_bytes(encoded(3))  # cat/3.jpg sorts first.
    (folder / "again.jpg").write_bytes(encoded(4))
    (folder / "part/dog/page.jpg").write_bytes(b"<html>404</html>")
    (folder / "part/dog/cut.jpg").write_bytes(encoded(20)[:400])
    (folder / "part/dog/small.jpg").write_bytes(encoded(21, size=(20, 20)))
    return folder


def plan_of(folder: Path, config: ShardConfig = CONFIG) -> Plan:
    return make_plan([Examined(s, examine(s.file, config)) for s in list_sources([folder])], config)


def build(crawl: Path, out: Path, config: ShardConfig = CONFIG):
    plan = plan_of(crawl, config)
    specs = shard_specs(plan, out, config)
    start_folder(out, [crawl], config, specs)
    reports = [write_shard(spec) for spec in reversed(specs)]
    return finish_folder(out, [crawl], config, plan, reports)


def index_of(folder: Path, shard: ShardInfo) -> ShardIndex:
    return read_index(folder / shard.index, sha256=shard.index_sha256)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def examined(path: str, content: int, outcome: str) -> Examined:
    reason = {"accepted": None, "quarantined": "truncated", "filtered": "min_side"}[outcome]
    verdict = Verdict(outcome, reason, f"{content:032x}", "JPEG", 64, 64, True)
    return Examined(Source(path, f"/{path}", path[0]), verdict)


INPUTS = st.dictionaries(
    st.text("abc", min_size=1, max_size=6),
    st.tuples(st.integers(0, 9), st.sampled_from(["accepted", "quarantined", "filtered"])),
    min_size=1,
).map(lambda found: [examined(path, content << 64, how) for path, (content, how) in found.items()])


@given(INPUTS, st.integers(1, 5), st.randoms())
def test_planning_partitions_the_inputs_in_any_order(inputs, limit, rng):
    config = ShardConfig(samples_per_shard=limit)
    if all(item.verdict.outcome != "accepted" for item in inputs):
        with pytest.raises(ConfigError, match=f"0 usable of {len(inputs)} images: "):
            make_plan(inputs, config)
        return
    plan = make_plan(inputs, config)
    held = [sample.source.path for shard in plan.shards for sample in shard]
    left_out = [item.path for item in plan.left_out]
    assert sorted(held + left_out) == sorted(item.source.path for item in inputs)
    hashes = [sample.content_hash for shard in plan.shards for sample in shard]
    assert hashes == sorted(set(hashes))
    sizes = [len(shard) for shard in plan.shards]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    rng.shuffle(inputs)
    assert make_plan(inputs, config) == plan


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.text("abc"))))
def test_the_smallest_path_of_equal_files_wins(images):
    winners = pick_winners(images)
    for content_hash in winners:
        paths = [path for found, path in images if found == content_hash]
        assert winners[content_hash] == min(paths)
    assert winners == pick_winners(reversed(images))


def test_every_input_is_accounted_for(crawl, tmp_path):
    ledger = build(crawl, tmp_path / "out").ledger
    assert ledger.model_dump() == {
        "inputs": 15,
        "accepted": 10,
        "quarantined": {"not_image": 1, "truncated": 1},
        "filtered": {"min_side": 1},
        "duplicate": 2,
    }
    lines = (tmp_path / "out/ledger.jsonl").read_text().splitlines()
    prefix = "crawl/part"
    assert [json.loads(line) for line in lines] == [
        {"path": f"{prefix}/dog/4.jpg", "verdict": "duplicate", "winner": "crawl/again.jpg"},
        {"path": f"{prefix}/dog/cut.jpg", "verdict": "quarantined", "reason": "truncated"},
        {"path": f"{prefix}/dog/page.jpg", "verdict": "quarantined", "reason": "not_image"},
        {
            "path": f"{prefix}/dog/repeat.jpg",
            "verdict": "duplicate",
            "winner": f"{prefix}/cat/3.jpg",
        },
        {"path": f"{prefix}/dog/small.jpg", "verdict": "filtered", "reason": "min_side"},
    ]


def test_the_manifest_reads_back_and_names_no_folder_of_this_machine(crawl, tmp_path):
    made = build(crawl, tmp_path / "out")
    assert read_manifest(tmp_path / "out") == made
    assert [shard.num_samples for shard in made.shards] == [3, 3, 4]
    assert made.classes == ("cat", "dog")
    assert made.config == {**CONFIG.model_dump(), "sources": ["crawl"]}
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's own.
def test_webdataset_reads_the_shards_sample_for_sample(crawl, tmp_path):
    made = build(crawl, tmp_path / "out")
    urls = [str(tmp_path / "out" / shard.name) for shard in made.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 10
    images = {path.read_bytes(): path for path in crawl.rglob("*.jpg")}
    for sample in samples:
        about = json.loads(sample["json"])
        pixels = decode_rgb(sample["jpg"])
        assert pixels is not None
        assert (about["width"], about["height"]) == pixels.shape[1::-1]
        source = tmp_path / about["source"]
        assert about.get("label") == (source.parent.name if source.parent != crawl else None)
        if source.suffix == ".jpg":
            assert sample["jpg"] in images


def test_the_index_points_at_the_images(crawl, tmp_path):
    made = build(crawl, tmp_path / "out")
    for shard in made.shards:
        tar = (tmp_path / "out" / shard.name).read_bytes()
        index = index_of(tmp_path / "out", shard)
        assert len(index) == shard.num_samples
        for row in range(len(index)):
            payload = tar[index.offsets[row] :][: index.sizes[row]]
            pixels = decode_rgb(payload)
            assert pixels is not None
            assert pixels.shape == (index.heights[row], index.widths[row], 3)
            assert min(pixels.shape[:2]) <= CONFIG.max_side
            assert xxhash.xxh3_64_intdigest(payload) == index.hashes[row]


def test_labels_are_class_numbers(crawl, tmp_path):
    made = build(crawl, tmp_path / "out")
    indexes = [index_of(tmp_path / "out", shard) for shard in made.shards]
    labels = np.concatenate([index.labels for index in indexes])
    # again.jpg lies in no class folder and wins over dog/4.jpg.
    assert [(labels == number).sum() for number in (-1, 0, 1)] == [1, 6, 3]


def test_one_class_is_no_class(tmp_path):
    folder = tmp_path / "crawl"
    for name in ("a/1.jpg", "b/broken.jpg"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(encoded(1) if "a/" in name else b"")
    made = build(folder, tmp_path / "out")
    assert made.classes is None
    assert index_of(tmp_path / "out", made.shards[0]).labels.tolist() == [-1]
    with (tmp_path / "out/shard-000000.tar").open("rb") as file:
        assert b'"label"' not in file.read()


def test_the_same_sources_give_the_same_bytes(crawl, tmp_path):
    build(crawl, tmp_path / "one")
    moved = tmp_path / "elsewhere" / "crawl"
    moved.parent.mkdir()
    crawl.rename(moved)
    build(moved, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_second_write_returns_the_first_report(crawl, tmp_path):
    (spec, *_) = shard_specs(plan_of(crawl), tmp_path, CONFIG)
    first = write_shard(spec)
    before = spec.tar_path.stat()
    assert write_shard(spec) == first
    assert spec.tar_path.stat().st_ino == before.st_ino  # Not written again.


@pytest.mark.parametrize("lost", ["tar", "parquet", "json", "cut tar", "cut index"])
def test_a_shard_that_is_not_whole_is_written_again(crawl, tmp_path, lost):
    out = tmp_path / "out"
    build(crawl, out)
    whole = contents(out)
    if lost.startswith("cut"):
        name = "shard-000001.tar" if lost == "cut tar" else "shard-000001.parquet"
        (out / name).write_bytes(whole[name][:-512])
    else:
        (out / f"shard-000001.{lost}").unlink()
    (out / ".shard-000002.tar.77.partial").write_bytes(b"half")
    (out / "shard-000009.tar").write_bytes(b"of an older plan")
    build(crawl, out)
    assert contents(out) == whole


def test_another_plan_writes_the_shard_again(crawl, tmp_path):
    spec = shard_specs(plan_of(crawl), tmp_path, CONFIG)[0]
    first = write_shard(spec)
    fewer = dataclasses.replace(spec, samples=spec.samples[1:])
    assert write_shard(fewer).num_samples == first.num_samples - 1
    assert write_shard(spec) == first


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_source_that_changed_is_named_and_leaves_no_shard(crawl, tmp_path, change):
    out = tmp_path / "out"
    out.mkdir()
    spec = shard_specs(plan_of(crawl), out, CONFIG)[0]
    victim = Path(spec.samples[1].source.file)
    victim.unlink()
    if change == "edit":
        victim.write_bytes(encoded(99))
    with pytest.raises(ConfigError, match=rf"source \(=crawl/.*{victim.name}\) changed while"):
        write_shard(spec)
    assert list(out.iterdir()) == []


def test_nothing_usable_counts_the_reasons(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"text")
    (tmp_path / "c.jpg").write_bytes(b"text")
    with pytest.raises(ConfigError, match="0 usable of 3 images: 1 empty, 2 not_image"):
        plan_of(tmp_path)


@pytest.mark.parametrize(
    ("resume", "config", "message"),
    [
        (False, CONFIG, "is not empty; use --resume to go on or choose another folder"),
        (True, ShardConfig(), r"was started with samples_per_shard \(=4\), not 1000; use the"),
    ],
)
def test_a_folder_in_use_is_refused(crawl, tmp_path, resume, config, message):
    build(crawl, tmp_path / "out")
    with pytest.raises(ConfigError, match=message):
        check_folder(tmp_path / "out", [crawl], config, resume=resume)
    check_folder(tmp_path / "out", [crawl], CONFIG, resume=True)


def test_a_strange_folder_is_no_resume(crawl, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="holds no shards to go on with"):
        check_folder(tmp_path / "out", [crawl], CONFIG, resume=True)


def test_out_inside_a_source_is_refused(crawl):
    with pytest.raises(ConfigError, match=r"out \(=.*shards\) lies inside source"):
        check_folder(crawl / "shards", [crawl], CONFIG, resume=False)


def test_out_that_is_a_file_is_refused(crawl, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(ConfigError, match="is no folder that can be written"):
        check_folder(tmp_path / "out", [crawl], CONFIG, resume=False)
