import io

import numpy as np
import pytest
from foreign_shards import index, picture, tar_of
from PIL import Image

from pipeline.ingest.config import ShardConfig
from pipeline.shards.store import Store
from pipeline.upkeep.inspection import _bins, inspect
from pipeline.upkeep.purge import purge


def quiet(done, total, note):
    assert done <= total


def test_counts_add_up_to_what_the_manifest_says(shards):
    found = inspect(str(shards), on_progress=quiet)
    summary = found.summary()
    for name in ("short_sides", "ratios", "formats", "classes"):
        assert sum(summary[name].values()) == 198, name
    assert summary["samples"] == summary["accepted"] == 198
    assert summary["formats"] == {"JPEG": 198}
    assert found.as_is is not None
    assert set(summary["classes"]) == {"bar", "disc", "ring", "wedge"}
    low, middle, high = found.image_bytes
    assert 0 < low <= middle <= high


def test_the_accepted_sheet_shows_images_of_the_set(shards):
    (sheet, *_) = inspect(str(shards), on_progress=quiet).sheets
    assert (sheet.title, sheet.count, len(sheet.pictures)) == ("accepted", 198, 24)
    keys = set(Store(shards).keys())
    for shown in sheet.pictures:
        assert shown.caption.split(",")[0] in keys
        with Image.open(io.BytesIO(shown.jpeg)) as image:
            assert image.size == (shown.width, shown.height)
            assert max(image.size) <= 112


def test_what_is_left_out_has_its_sheets(make_shards, tmp_path):
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for number in range(6):
        (crawl / f"{number}.jpg").write_bytes(photo(number, 80))
    (crawl / "copy.jpg").write_bytes(photo(0, 80))
    (crawl / "tiny.jpg").write_bytes(photo(7, 20))
    (crawl / "page.jpg").write_bytes(b"<html>not found</html>")
    made = make_shards(crawl, tmp_path / "out", ShardConfig())
    assert made.ledger.inputs == 9
    found = inspect(str(tmp_path / "out"), on_progress=quiet)
    sheets = {sheet.title: sheet for sheet in found.sheets}
    assert sheets["filtered: min_side"].count == 1
    assert sheets["filtered: min_side"].pictures[0].caption.endswith("tiny.jpg")


def photo(seed, side):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(sink, "JPEG")
    return sink.getvalue()


def test_shards_of_others_can_be_looked_at(tmp_path):
    tar_of([(f"{n}.jpg", picture(n)) for n in range(5)], tmp_path / "a.tar")
    index([tmp_path / "a.tar"], tmp_path / "out")
    found = inspect(str(tmp_path / "out"), on_progress=quiet)
    assert found.summary()["samples"] == 5
    assert (found.formats, found.as_is, found.classes) == ((), None, ())
    assert [sheet.title for sheet in found.sheets] == ["accepted"]


def test_purged_samples_are_counted(own_shards):
    purge(str(own_shards), Store(own_shards).keys()[:3], on_progress=quiet)
    assert inspect(str(own_shards), on_progress=quiet).summary()["purged"] == 3


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([], []),
        ([5, 64], ["0 to 64 px", "64 to 128 px"]),
        ([70, 300], ["64 to 128 px", "128 to 256 px", "256 px and more"]),
    ],
)
def test_bins_begin_and_end_where_there_is_something(values, names):
    bins = _bins(np.array(values), (0, 64, 128, 256), "px")
    assert [one.name for one in bins] == names
    assert sum(one.count for one in bins) == len(values)
