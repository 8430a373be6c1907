import re
from pathlib import Path

import pytest
from command import tessera

from cluster.config import reference

FILE = Path(__file__).parents[2] / "configs" / "README.md"


def test_the_reference_is_what_the_models_say(tmp_path):
    result = tessera("config", "--out", tmp_path / "README.md")
    assert result.exit_code == 0, result.output
    made = (tmp_path / "README.md").read_text()
    assert FILE.read_text() == made, "run: tessera config --out configs/README.md"


def test_every_link_of_the_reference_has_one_heading():
    text = reference()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings]
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#(.*?)\)", text)) <= set(anchors)


@pytest.mark.parametrize(
    "row",
    [
        "| `seed` | integer | required | ≥ 0 |",
        "| `min_scale` | number | `0.7` | > 0, ≤ 1 |",
        "| `background` | list of 3 integers | `[255, 255, 255]` |",
        "| `store_as` | `jpeg` or `webp` | `jpeg` |",
        "| `folder` | path | `~/.cache/tessera/shards` |",
        "| `cache` | [data.cache](#datacache) | its defaults |",
    ],
)
def test_a_row_has_name_type_default_and_limits(row):
    assert row in reference()
