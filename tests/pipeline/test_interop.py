import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from nvidia.dali import fn, pipeline_def
from PIL import Image

from pipeline.shards.index import read_index
from pipeline.shards.manifest import read_manifest
from pipeline.shards.store import Store
from pipeline.shards.third_party.indexing import index_shards, run_here

# WebDataset leaves the files it reads to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ENDINGS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(seed, image_format="JPEG"):
    noise = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, image_format)
    return sink.getvalue()


SAMPLES = [
    {
        "__key__": f"set.a/{number:04}",
        ending: picture(number, image_format),
        "cls": str(number % 3).encode(),
        "txt": b"a caption",
    }
    for number, (ending, image_format) in enumerate([*ENDINGS.items()] * 3)
]


def with_shard_writer(folder):
    # The time it writes has a fraction, which costs every member a PAX header.
    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=4, verbose=0) as writer:
        for sample in SAMPLES:
            writer.write(sample)


def with_tar_writer(folder):
    with webdataset.TarWriter(f"{folder}/0.tar", encoder=False, mtime=0) as writer:
        for sample in SAMPLES:
            writer.write(sample)


def with_tarfile(tar_format):
    def write(folder):
        with tarfile.open(folder / "0.tar", "w", format=tar_format) as tar:
            for sample in SAMPLES:
                for ending in [name for name in sample if name != "__key__"]:
                    # Too long for the plain field of a name in every format.
                    info = tarfile.TarInfo(f"{'d' * 100}/{sample['__key__']}.{ending}")
                    info.size = len(sample[ending])
                    tar.addfile(info, io.BytesIO(sample[ending]))

    return write


WRITERS = {
    "webdataset.ShardWriter": with_shard_writer,
    "webdataset.TarWriter": with_tar_writer,
    "tarfile, USTAR": with_tarfile(tarfile.USTAR_FORMAT),
    "tarfile, GNU": with_tarfile(tarfile.GNU_FORMAT),
    "tarfile, PAX": with_tarfile(tarfile.PAX_FORMAT),
}


def index(folder, out, *, fast):
    options = {"fast": fast, "skip_damaged": False, "on_progress": lambda *_: None}
    return index_shards([str(folder)], out, run_here, **options).manifest


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("writer", sorted(WRITERS))
def test_shards_of_others_are_read_where_they_lie(tmp_path, writer, fast):
    folder = tmp_path / "theirs"
    folder.mkdir()
    WRITERS[writer](folder)
    made = index(folder, tmp_path / "out", fast=fast)
    assert (made.num_samples, made.classes) == (len(SAMPLES), ("0", "1", "2"))
    store = Store(tmp_path / "out")
    samples = store.read(np.arange(len(SAMPLES)))
    images = [next(sample[end] for end in ENDINGS if end in sample) for sample in SAMPLES]
    assert [payload.tobytes() for payload in samples.payloads] == images
    assert samples.labels.tolist() == [number % 3 for number in range(len(SAMPLES))]
    assert set(zip(samples.widths.tolist(), samples.heights.tolist(), strict=True)) == {(30, 20)}
    theirs = read_with_webdataset([shard.name for shard in made.shards])
    assert store.keys() == [sample["__key__"] for sample in theirs]


# Our own shards, read by others.


def read_with_webdataset(tars):
    dataset = webdataset.WebDataset(
        [str(tar) for tar in tars], shardshuffle=False, empty_check=False
    )
    return list(dataset)


@pytest.fixture(scope="module")
def ours(shards):
    """Every sample of our own shards, by the index: (key, image, class)."""
    made, rows = read_manifest(shards), []
    for shard in made.shards:
        found = read_index(shards / shard.index, sha256=shard.index_sha256)
        tar = (shards / shard.name).read_bytes()
        for key, offset, size, label in zip(
            found.keys, found.offsets, found.sizes, found.labels, strict=True
        ):
            rows.append((key, tar[offset : offset + size], made.classes[label]))
    assert len(rows) == made.num_samples
    return rows


@pytest.fixture
def tars(shards):
    return [shards / shard.name for shard in read_manifest(shards).shards]


def test_webdataset_reads_our_shards(tars, ours):
    read = [
        (sample["__key__"], sample["jpg"], json.loads(sample["json"])["label"])
        for sample in read_with_webdataset(tars)
    ]
    assert read == ours


def test_the_standard_library_reads_our_shards(tars, ours):
    contents = {}
    for path in tars:
        with tarfile.open(path) as tar:
            contents |= {member.name: tar.extractfile(member).read() for member in tar}
    names = [f"{key}.{ending}" for key, _, _ in ours for ending in ("jpg", "json")]
    assert list(contents) == names
    assert [contents[name] for name in names[::2]] == [image for _, image, _ in ours]


def test_dali_reads_our_shards(tars, ours):
    @pipeline_def(batch_size=len(ours), num_threads=1, device_id=None)
    def graph():
        return tuple(
            fn.readers.webdataset(
                paths=[str(path) for path in tars],
                ext=["jpg", "json"],
                missing_component_behavior="error",
            )
        )

    images, texts = graph().run()
    assert [images.at(i).tobytes() for i in range(len(ours))] == [image for _, image, _ in ours]
    labels = [json.loads(texts.at(i).tobytes())["label"] for i in range(len(ours))]
    assert labels == [label for _, _, label in ours]


def test_torchdata_reads_our_shards(tars, ours):
    pytest.importorskip("torchdata.datapipes", reason="torchdata is not here, or too new for it")
    from torchdata.datapipes.iter import FileOpener, IterableWrapper

    pipe = FileOpener(IterableWrapper(map(str, tars)), mode="b").load_from_tar().webdataset()
    read = [(Path(s["__key__"]).name, s[".jpg"].read()) for s in pipe]
    assert read == [(key, image) for key, image, _ in ours]


def test_our_shards_indexed_as_those_of_others_give_the_same_samples(shards, tmp_path, ours):
    made = index(shards, tmp_path / "out", fast=False)
    assert made.classes == read_manifest(shards).classes
    again = [
        read_index(tmp_path / "out" / shard.index, sha256=shard.index_sha256)
        for shard in made.shards
    ]
    first = [
        read_index(shards / shard.index, sha256=shard.index_sha256)
        for shard in read_manifest(shards).shards
    ]
    for one, other in zip(again, first, strict=True):
        assert one.keys == other.keys
        for name in set(one.__slots__) - {"keys"}:
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert made.fingerprint == read_manifest(shards).fingerprint
