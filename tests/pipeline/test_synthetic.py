"""The rendered crawl: reproducible, as untidy as promised, and its classes differ by shape only."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pipeline.config import ConfigError
from pipeline.synthetic import crawl as synthetic
from pipeline.synthetic.crawl import file_bytes, plan_crawl, render_crawl
from pipeline.synthetic.objects import CLASSES, draw_object
from pipeline.synthetic.scene import render_picture

NUM_IMAGES = 120
SEED = 3


def render(out, progress=lambda done, total: None):
    return render_crawl(out, num_images=NUM_IMAGES, seed=SEED, on_progress=progress)


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return render(tmp_path_factory.mktemp("crawl"))


@pytest.fixture(scope="module")
def pictures(summary):
    """Every file that Pillow decodes to its last byte, by path relative to the crawl."""
    found = {}
    for path in sorted(p for p in summary.root.rglob("*") if p.is_file()):
        try:
            with Image.open(path) as image:
                image.load()
                found[str(path.relative_to(summary.root))] = image
        except OSError:
            continue
    return found


def test_bytes_do_not_depend_on_the_process_that_renders_them(summary):
    files = plan_crawl(NUM_IMAGES, SEED)
    on_disk = {p.relative_to(summary.root).as_posix() for p in summary.root.rglob("*.*")}
    assert {file.path for file in files} <= on_disk
    for file in files[::5] + files[NUM_IMAGES:]:
        assert (summary.root / file.path).read_bytes() == file_bytes(file, SEED), file


def test_another_seed_gives_other_pictures():
    (first, *_), (other, *_) = plan_crawl(NUM_IMAGES, 0), plan_crawl(NUM_IMAGES, 1)
    assert file_bytes(first, 0) != file_bytes(other, 1)


def test_a_larger_crawl_begins_with_the_smaller_one():
    assert plan_crawl(300, SEED)[:NUM_IMAGES] == plan_crawl(NUM_IMAGES, SEED)[:NUM_IMAGES]


def test_no_path_is_used_twice():
    paths = [file.path for file in plan_crawl(4000, 0)]
    assert len(set(paths)) == len(paths)


def test_files_are_what_the_summary_says(summary, pictures):
    sizes = [p.stat().st_size for p in summary.root.rglob("*") if p.is_file()]
    assert len(sizes) == summary.num_files
    assert sum(size == 0 for size in sizes) == summary.broken["empty"] > 0
    assert len(pictures) == summary.num_files - sum(summary.broken.values())
    assert len(pictures) == summary.num_images + summary.num_duplicates
    contents = {(summary.root / path).read_bytes() for path in pictures}
    assert len(contents) == summary.num_images
    assert set(summary.broken) == {"truncated", "html", "empty", "text"}


def test_formats_are_what_the_summary_says(summary, pictures):
    first = {file.path for file in plan_crawl(NUM_IMAGES, SEED)[:NUM_IMAGES]}
    formats = Counter(image.format for path, image in pictures.items() if path in first)
    assert formats == summary.formats
    assert formats["PNG"] >= 3
    assert formats["WEBP"] >= 3


def test_sides_are_200_to_600_px(pictures):
    sides = np.array([image.size for image in pictures.values()])
    assert sides.min() >= 200
    assert sides.max() <= 600
    assert len(np.unique(sides, axis=0)) > NUM_IMAGES / 2


def test_last_folder_level_is_the_class(summary, pictures):
    counts = Counter(path.split("/")[-2] for path in pictures)
    assert tuple(sorted(counts)) == summary.classes
    assert len(counts) >= 8
    assert min(counts.values()) >= NUM_IMAGES // len(counts)


def test_some_endings_are_in_capitals_and_some_are_wrong():
    files = plan_crawl(2000, 0)[:2000]
    endings = [file.path.rpartition(".")[2] for file in files]
    known = {"JPEG": {"jpg", "jpeg"}, "PNG": {"png"}, "WEBP": {"webp"}}
    wrong = [end.lower() not in known[f.format] for f, end in zip(files, endings, strict=True)]
    assert 5 <= sum(wrong) <= 50
    assert 20 <= sum(end.isupper() for end in endings) <= 120


@pytest.mark.parametrize("name", CLASSES)
def test_objects_fill_the_unit_square_with_at_least_four_parts(name):
    for seed in range(20):
        parts = draw_object(name, np.random.default_rng(seed))
        corners = np.concatenate([part.points for part in parts])
        assert np.isfinite(corners).all()
        assert np.ptp(corners, axis=0).max() == pytest.approx(1)
        assert len({part.paint for part in parts}) >= 4


def test_colour_and_brightness_do_not_give_the_class_away():
    features, labels = [], np.arange(400) % len(CLASSES)
    for index, label in enumerate(labels):
        picture = render_picture(np.random.default_rng((9, index)), CLASSES[label])
        pixels = np.asarray(picture.reduce(4), dtype=np.float64).reshape(-1, 3)
        features.append(np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))
    x = np.array(features)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    train = np.arange(400) < 200
    centres = np.stack([x[train & (labels == k)].mean(axis=0) for k in range(len(CLASSES))])
    nearest = np.linalg.norm(x[~train, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == labels[~train]).mean() < 2.5 / len(CLASSES)


def test_progress_ends_at_the_number_of_files(tmp_path):
    seen = []
    summary = render(tmp_path, lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, summary.num_files)
    assert seen[-1] == (summary.num_files, summary.num_files)
    assert seen == sorted(seen)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_second_crawl_is_refused(summary):
    with pytest.raises(ConfigError, match=r"already holds synthetic-crawl; remove it"):
        render(summary.root.parent)


def test_too_few_pictures_name_the_law(tmp_path):
    with pytest.raises(ConfigError, match=r"num_images \(=9\) must be at least 10"):
        synthetic.render_crawl(tmp_path, num_images=9, seed=0, on_progress=lambda a, b: None)
    assert list(tmp_path.iterdir()) == []
