import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.audit.audit import LEAST_CONTROL, MOST_TO_DECIDE, ShortcutVerdict, run_audit
from pipeline.audit.evidence import ProbeScore
from pipeline.audit.gather import KINDS, Control, Source, emit, gather, write_control
from pipeline.audit.limits import CONTROL_TOLERANCE, EDGES
from pipeline.audit.planted import PlantedBug, prove
from pipeline.config import ConfigError
from pipeline.loading.data import DataConfig
from pipeline.pretext.context import ContextConfig
from pipeline.pretext.jigsaw import JigsawConfig
from pipeline.pretext.multitask import MultitaskConfig
from pipeline.pretext.rotation import RotationConfig
from pipeline.reference import tile_views
from pipeline.shards.store import Store

JIGSAW = JigsawConfig(name="jigsaw", crop_px=99, tile_px=24, num_permutations=50)
CONTEXT = ContextConfig(
    name="context", patch_px=24, gap_px=12, jitter_px=4, min_pixels=8000, max_pixels=20_000
)
ROTATION = RotationConfig(name="rotation", crop_px=48)
MULTITASK = MultitaskConfig(name="multitask", tasks=(JIGSAW, CONTEXT, ROTATION), weights=(1, 1, 1))
PIXELS = {"edges", "moments", "chroma", "places", "blocks", "spectrum", "borders"}


def silent(share, note):
    assert 0 <= share <= 1
    assert note


def source(shards, pretext=JIGSAW):
    return Source(DataConfig(manifest=str(shards)), pretext, seed=0)


@pytest.fixture(scope="module")
def audited(shards):
    """The audit of all tasks on 198 drawings."""
    return run_audit(source(shards, MULTITASK), 2000, silent)


def test_gathered_views_are_those_of_the_reference(shards):
    (evidence,) = gather(source(shards), 40, silent)
    assert evidence.views.shape == (40, 9, 24, 24, 3)
    samples = Store(shards).read(evidence.sample_ids)
    expected = tile_views([bytes(p) for p in samples.payloads], JIGSAW.tiles, evidence.plan)
    assert np.abs(evidence.views.astype(int) - expected).max() <= 2
    assert (evidence.heights == samples.heights).all()


def test_every_image_is_gathered_once(shards):
    (evidence,) = gather(source(shards), 10_000, silent)
    assert sorted(evidence.sample_ids) == list(range(198))


def test_plans_left_as_they_are_give_the_views_of_the_loader(shards):
    (loaded,) = gather(source(shards), 198, silent)
    emitted = emit(source(shards), JIGSAW, 198, lambda plan: plan)
    where = np.argsort(loaded.sample_ids)
    assert (loaded.views[where] == emitted.views).all()
    assert (loaded.plan.labels[where] == emitted.plan.labels).all()


def test_the_control_has_the_sizes_of_the_images_and_every_kind(tmp_path):
    sizes = np.array([[60, 80], [90, 50]], np.int32)
    write_control(Control(sizes, 16, seed=0), tmp_path / "control", lambda n: None)
    samples = Store(tmp_path / "control").read(np.arange(16))
    found = set(zip(samples.heights.tolist(), samples.widths.tolist(), strict=True))
    assert found == {(60, 80), (90, 50)}
    deviations = []
    for payload in samples.payloads:
        path = tmp_path / "one.jpg"
        path.write_bytes(bytes(payload))
        with Image.open(path) as image:
            deviations.append(np.asarray(image).std(axis=(0, 1)).max())
    constant = np.array(KINDS) == "constant"
    assert (np.array(deviations).reshape(4, 4)[:, constant] < 1).all()
    assert (np.array(deviations).reshape(4, 4)[:, ~constant] > 5).all()


def test_a_huge_image_has_a_smaller_one_without_content_beside_it(tmp_path):
    sizes = np.array([[9000, 18_000]], np.int32)
    write_control(Control(sizes, 4, seed=0), tmp_path / "control", lambda n: None)
    samples = Store(tmp_path / "control").read(np.arange(4))
    assert samples.widths[0] == pytest.approx(2 * samples.heights[0], abs=2)
    assert samples.heights[0] * samples.widths[0] <= 402_000


def test_images_without_content_leave_every_probe_at_chance(audited):
    scores = {n: v.control for n, v in zip(audited.names(), audited.verdicts, strict=True)}
    assert {name: s.low for name, s in scores.items() if s and s.low > CONTROL_TOLERANCE} == {}
    assert audited.control_images == LEAST_CONTROL


def test_each_task_is_asked_what_applies_to_it(audited):
    assert set(audited.names()) == {
        *(f"jigsaw.{name}" for name in PIXELS | {"draws", "codes"}),
        *(f"context.{name}" for name in PIXELS | {"draws"}),
        *(f"rotation.{name}" for name in ("turns", "borders", "draws")),
    }


def test_json_holds_every_verdict(audited):
    listed = json.loads(json.dumps(audited.listed()))
    assert listed["ok"] == all(row["ok"] for row in listed["shortcuts"].values())
    assert (listed["images"], listed["seed"]) == (198, 0)
    for name, row in listed["shortcuts"].items():
        assert {"score", "interval", "control_score", "limit", "ok", "measures"} <= set(row), name
        low, high = row["interval"]
        assert low <= row["score"] <= high
        assert row["ok"] == (row["verdict"] == "closed" and not row["bug"])
        assert row["open"] == (row["verdict"] == "open") == (low > row["limit"])
        assert (row["verdict"] == "closed") == (high <= row["limit"])
        assert (row["images_to_decide"] is None) == (row["verdict"] != "undecided")


def test_a_pretext_alone_has_no_task_in_its_names(shards):
    found = run_audit(source(shards, ROTATION), 80, silent)
    assert found.names() == ["turns", "borders", "draws"]
    assert found.images == 80


def test_tiles_without_a_gap_are_open(shards):
    bare = JigsawConfig(
        name="jigsaw", crop_px=99, tile_px=33, channel_shift_px=0, num_permutations=50
    )
    found = run_audit(source(shards, bare), 100, silent)
    (edges,) = (v for v in found.verdicts if v.shortcut.name == "edges")
    assert edges.finding == "open"
    assert not edges.ok
    assert not found.ok


SHORTCUTS = st.floats(0.01, 0.5).map(lambda limit: replace(EDGES, limit=limit))


@given(SHORTCUTS, st.floats(-0.2, 1), st.floats(0, 0.2), st.floats(0, 0.2), st.integers(60, 5000))
def test_a_verdict_is_where_the_interval_lies_and_the_images_would_decide_it(
    shortcut, value, below, above, images
):
    score = ProbeScore(value, value - below, value + above, 400, {})
    verdict = ShortcutVerdict("jigsaw", shortcut, score, None)
    needed = verdict.images_to_decide(images)
    if score.low > shortcut.limit or score.high <= shortcut.limit:
        assert verdict.finding == ("open" if score.low > shortcut.limit else "closed")
        assert needed is None
        return
    assert (verdict.finding, verdict.ok, verdict.is_bad) == ("undecided", False, False)
    assert images <= needed <= MOST_TO_DECIDE
    if needed < MOST_TO_DECIDE:
        narrowed = (images / needed) ** 0.5
        low, high = value - narrowed * below, value + narrowed * above
        assert low >= shortcut.limit - 1e-9 or high <= shortcut.limit + 1e-9


def test_too_few_images_are_refused(tmp_path):
    sizes = np.array([[90, 90]], np.int32)
    write_control(Control(sizes, 5, seed=0), tmp_path / "few", lambda n: None)
    with pytest.raises(ConfigError, match=r"few\) holds 5 images, too few for an audit"):
        run_audit(source(tmp_path / "few"), 100, silent)


def test_a_catch_passes_without_the_bug_and_fails_with_it(audited):
    verdict = audited.verdicts[0]
    nothing, everything = ({"low": low} for low in (0.0, 0.9))
    low, high = (replace(verdict.score, **change) for change in (nothing, everything))
    assert PlantedBug("bug", verdict.shortcut, low, high).caught
    assert not PlantedBug("bug", verdict.shortcut, low, low).caught
    assert not PlantedBug("bug", verdict.shortcut, high, high).caught


@pytest.mark.slow
def test_every_planted_bug_is_caught(tmp_path):
    # Noise that falls as 1/f has edges, colors and textures enough to stand for photographs.
    sizes = np.array([[300, 400], [400, 300]], np.int32)
    noise = Control(sizes, 400, seed=1, kinds=("1/f noise",))
    write_control(noise, tmp_path / "noise", lambda n: None)
    catches = prove(source(tmp_path / "noise"), 400, silent)
    assert [catch.bug for catch in catches if not catch.caught] == []
    assert len(catches) == 12
