import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from command import tessera

from pipeline.audit.gather import Control, write_control

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


def test_a_closed_pretext_ends_with_0_and_leaves_a_page(noise, tmp_path):
    out = tmp_path / "audit"
    result = audit(CONFIG, noise, "--out", out, "--json", tmp_path / "found.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "no shortcut is open: 9 probes on 100 images"
    listed = json.loads((out / "audit.json").read_text())
    assert listed == json.loads((tmp_path / "found.json").read_text())
    assert listed["ok"]
    page = (out / "audit.html").read_text()
    assert "no shortcut is open" in page
    assert page.count('<tr><th scope="row">edges</th>') == 2


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
