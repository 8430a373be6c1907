"""The README's pretext is run as it stands there."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.dali.graph import GraphOptions
from pipeline.dali.tiles import tile_graph
from pipeline.pretext.draws import Draws
from pipeline.reference import tile_views
from pipeline.shards.store import Store

README = Path(__file__).parents[2] / "pipeline/pretext/README.md"


@pytest.fixture(scope="module")
def code():
    (found,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return found


def test_a_pretext_takes_under_60_lines(code):
    assert 30 < len(code.splitlines()) < 60


def test_the_pretext_of_the_readme_runs_in_the_graph(code, shards):
    names = {}
    exec(compile(code, str(README), "exec"), names)
    config = names["MirrorConfig"](name="mirror", crop_px=32)
    ids = np.arange(40)
    samples = Store(shards).read(ids)
    plan = names["plan_mirror"](config, samples.heights, samples.widths, Draws(0, 0, ids))
    assert set(plan.labels.ravel()) == {0, 1}

    feed = iter([(samples.payloads, *plan.arrays())])
    options = GraphOptions(max_batch=40, num_threads=1, device_id=None, prefetch=1)
    views = tile_graph(lambda: next(feed), [config.tiles], options).run().numpy()
    payloads = [payload.tobytes() for payload in samples.payloads]
    upright = tile_views(payloads, config.tiles, replace(plan, mirrored=0 * plan.mirrored))
    labels = plan.labels[:, 0, None, None, None, None]
    undone = np.where(labels == 1, views[:, :, :, ::-1], views).astype(int)
    assert np.abs(undone - upright).max() <= 2
    assert np.abs(views.astype(int) - upright).max() > 50
