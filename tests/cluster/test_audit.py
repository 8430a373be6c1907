import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command import tessera

from pipeline.audit.audit import Audit, ShortcutVerdict
from pipeline.audit.evidence import ProbeScore
from pipeline.audit.gather import Control, write_control
from pipeline.audit.limits import BLOCKS, EDGES

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "pretrain.yaml"
NO_GAP = ["pretext.tile_px=43", "pretext.channel_shift_px=0"]


audit = partial(tessera, "audit")


@pytest.fixture
def noise(tmp_path):
    """Shards of 100 images without content, on which no shortcut can be open."""
    sizes = np.array([[120, 160], [160, 120]], np.int32)
    write_control(Control(sizes, 100, seed=3), tmp_path / "noise", lambda n: None)
    return tmp_path / "noise"


def refusal(result):
    """The one line of bad input."""
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture
def found(monkeypatch):
    """A function (scores by name) that makes the audit find these, on 400 images."""

    def make(**scores):
        shortcuts = {"edges": EDGES, "blocks": BLOCKS}
        found = [
            ShortcutVerdict("jigsaw", shortcuts[n], ProbeScore(*s, 400, {}), None)
            for n, s in scores.items()
        ]
        audit = Audit("0" * 16, 0, 400, 1000, tuple(found))
        monkeypatch.setattr("pipeline.audit.audit.run_audit", lambda *_: audit)

    return make


CLOSED, UNDECIDED = (0.09, 0.05, 0.12), (0.023, 0.007, 0.038)


def test_a_closed_pretext_ends_with_0_and_leaves_a_page(noise, tmp_path, found):
    found(edges=CLOSED, blocks=(0.01, -0.01, 0.02))
    out = tmp_path / "audit"
    result = audit(CONFIG, noise, "--out", out, "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "every shortcut is closed: 2 probes on 400 images"
    listed = json.loads((out / "audit.json").read_text())
    assert listed == json.loads((tmp_path / "found.json").read_text())
    assert listed["ok"]
    assert [row["verdict"] for row in listed["shortcuts"].values()] == ["closed", "closed"]
    page = (out / "audit.html").read_text()
    assert "every shortcut is closed" in page
    assert page.count('<tr><th scope="row">edges</th>') == 2


@pytest.mark.parametrize("allowed", [False, True])
def test_what_is_not_decided_is_neither_open_nor_closed(allowed, noise, tmp_path, found):
    found(edges=CLOSED, blocks=UNDECIDED)
    option = ["--allow-undecided"] if allowed else []
    result = audit(CONFIG, noise, *option, "--out", tmp_path / "audit")
    assert result.exit_code == (0 if allowed else 1), result.output
    # 400 images leave 0.016 below the score, which is 0.003 above the limit: 400 x (16 / 3)^2.
    assert result.stdout.splitlines()[-1] == (
        "undecided on 400 images: blocks 0.023 (0.007 .. 0.038, limit 0.02; about 12,000 images "
        "would decide)"
    )
    listed = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert not listed["ok"]
    blocks = listed["shortcuts"]["blocks"]
    assert (blocks["verdict"], blocks["open"], blocks["ok"]) == ("undecided", False, False)
    assert blocks["images_to_decide"] == 12_000
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "1 of 2 undecided" in page
    assert "<td>undecided: about 12,000 images would decide</td>" in page


def test_an_open_shortcut_is_told_before_an_undecided_one(noise, tmp_path, found):
    found(edges=(0.5, 0.4, 0.6), blocks=UNDECIDED)
    result = audit(CONFIG, noise, "--allow-undecided", "--out", tmp_path / "audit")
    assert result.exit_code == 1, result.output
    assert result.stdout.splitlines()[-1].startswith(
        "open: edges 0.500 (limit 0.25); undecided on 400 images: blocks 0.023 "
    )
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "1 of 2 probes object, 1 of 2 undecided" in page


def test_an_open_shortcut_ends_with_1_and_is_named(noise, tmp_path):
    result = audit(CONFIG, noise, *NO_GAP, "--out", tmp_path / "audit")
    assert result.exit_code == 1, result.output
    assert re.match(r"open: edges 0\.\d+ \(limit 0\.25\)", result.stdout.splitlines()[-1])
    assert not json.loads((tmp_path / "audit" / "audit.json").read_text())["ok"]
    assert "probes object" in (tmp_path / "audit" / "audit.html").read_text()


def test_a_page_stands_alone(noise, tmp_path):
    audit(CONFIG, noise, "--images", 60, "--out", tmp_path / "audit")
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r'(src|href)="(?!#)', page)
    assert page.count("<svg") == page.count("</svg>")
    for drawn in re.findall(r'<svg class="chart"[^>]*>', page):
        assert 'role="img"' in drawn


def test_bad_input_is_refused_in_one_line(noise, tmp_path):
    missing = refusal(audit(CONFIG, tmp_path / "nowhere"))
    assert "nowhere) does not exist; give a folder of shards" in missing
    empty = refusal(audit(CONFIG, tmp_path))
    assert "holds no manifest.json; give a folder of shards" in empty
    no_config = refusal(audit(tmp_path / "no.yaml", noise))
    assert "config (=" in no_config
    assert "cannot be read" in no_config
    no_pretext = refusal(audit(CONFIG, noise, "pretext=null"))
    assert "pretext is missing in" in no_pretext
    assert "nothing to audit" in no_pretext
    file = tmp_path / "file"
    file.touch()
    assert "file) is a file; give a folder" in refusal(audit(CONFIG, noise, "--out", file))


def test_an_audit_without_images_is_a_usage_error(noise):
    assert audit(CONFIG, noise, "--images", 0).exit_code == 2


def test_help_names_an_example():
    assert "Example: tessera audit" in audit("--help").output
