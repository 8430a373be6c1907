import base64
import io
import itertools
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from command import tessera
from PIL import Image

RUN = {"seed": 3, "order": {"global_batch": 24, "num_lanes": 6, "window": 20}}
JIGSAW = {"name": "jigsaw", "crop_px": 48, "tile_px": 12, "channel_shift_px": 1}
CONTEXT = {"name": "context", "patch_px": 12, "gap_px": 4, "jitter_px": 1, "min_pixels": 2000}
ROTATION = {"name": "rotation", "crop_px": 32}
BOTH = {"name": "multitask", "tasks": [JIGSAW, CONTEXT, ROTATION], "weights": [1, 1, 1]}


preview = partial(tessera, "preview")


@pytest.fixture
def config(tmp_path):
    """A function (pretext) that writes a config and returns its path."""

    def write(pretext, **sections):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**RUN, "pretext": pretext, **sections}))
        return path

    return write


class Page(HTMLParser):
    """The elements of a page."""

    def __init__(self, path):
        super().__init__()
        self.source, self.elements = path.read_text(encoding="utf-8"), []
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def of(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.mark.parametrize(
    ("pretext", "pictures"),
    [
        # Three of each image; before and after of gap, gray, normalization, and 4 of the shift.
        (JIGSAW, 2 * 3 + 10),
        (CONTEXT, 2 * 3 + 8),
        (ROTATION, 2 * 2 + 4),
        (BOTH, 16 + 14 + 8),
    ],
)
def test_the_page_holds_every_picture(config, shards, tmp_path, pretext, pictures):
    out = tmp_path / "new" / "preview"
    result = preview(config(pretext), shards, "--out", out, "--images", 2)
    assert result.exit_code == 0, result.output
    last = result.stdout.splitlines()[-1]
    assert last == f"page: {out / 'preview.html'}, and its {pictures} pictures beside it"
    files = {path.read_bytes(): path for path in out.glob("*.png")}
    shown = Page(out / "preview.html").of("img")
    assert len(shown) == pictures == len(list(out.glob("*.png")))
    for image in shown:
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert data in files
        size = Image.open(io.BytesIO(data)).size
        assert size == (int(image["width"]), int(image["height"]))
        assert len(image["alt"]) > 10


def test_the_page_loads_nothing_and_can_be_read_without_eyes(config, shards, tmp_path):
    out = tmp_path / "preview"
    assert preview(config(BOTH), shards, "--out", out, "--images", 1).exit_code == 0
    page = Page(out / "preview.html")
    targets = [a[key] for _, a in page.elements for key in ("src", "href") if key in a]
    assert all(target.startswith(("data:image/png", "#")) for target in targets)
    assert not page.of("script", "link", "iframe")
    assert "http" not in page.source.replace("http-equiv", "")
    assert page.of("html")[0]["lang"] == "en"
    assert "prefers-color-scheme: dark" in page.source
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    named = [a["aria-labelledby"] for a in page.of("section")]
    assert set(named) | {a["href"][1:] for a in page.of("a")} <= set(ids)
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_a_run_s_whole_config_will_do(shards, tmp_path):
    config = Path(__file__).parents[2] / "configs" / "demo" / "pretrain.yaml"
    out = tmp_path / "preview"
    result = preview(config, shards, "pretext.tile_px=20", "--out", out, "--images", 1)
    assert result.exit_code == 0, result.output
    assert len(list(out.glob("*-order.png"))) == 1


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"pretext": {"name": "puzzle"}}, [], ["run.yaml: pretext", "puzzle"]),
        ({"pretext": {**ROTATION, "crop": 5}}, [], ["crop", "crop_px"]),
        ({"seeds": 5}, [], ["seeds", "seed"]),
        ({}, ["--images", 25], ["images (=25) must be in 1..24, the samples of a step."]),
        ({"order": {"global_batch": 400, "num_lanes": 4, "window": 9}}, [], ["400"]),
    ],
)
def test_bad_input_is_one_line(config, shards, tmp_path, changes, options, words):
    path = config(**{"pretext": ROTATION, **changes})
    result = preview(path, shards, "--out", tmp_path / "preview", *options)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "preview").exists()


def test_a_folder_with_something_in_it_is_refused(config, shards, tmp_path):
    result = preview(config(ROTATION), shards, "--out", tmp_path)
    assert result.exit_code == 2
    assert "is not a new folder; give one that is empty or not there." in result.stderr


def test_shards_that_are_not_there_are_named(config, tmp_path):
    result = preview(config(ROTATION), tmp_path / "nowhere", "--out", tmp_path / "preview")
    assert result.exit_code == 2
    assert "nowhere" in result.stderr
    assert result.stderr.count("\n") == 1
