from pathlib import Path

import pytest

from cluster.shard import folder_for
from pipeline.config import ConfigError


def test_shards_for_a_url_are_made_in_scratch(tmp_path):
    assert folder_for("s3://bucket/set", tmp_path) == tmp_path
    assert folder_for("shards", None) == Path("shards")
    assert folder_for("file:///data/set", None) == Path("/data/set")


@pytest.mark.parametrize(
    ("out", "scratch", "words"),
    [
        ("s3://bucket/set", None, r"out \(=s3://bucket/set\) is a URL: .* --scratch DIR"),
        ("shards", Path("x"), r"scratch \(=x\) is for URLs"),
        ("https://host/set", Path("x"), "is an HTTP URL, which is read-only"),
    ],
)
def test_places_that_do_not_go_together_are_refused(out, scratch, words):
    with pytest.raises(ConfigError, match=words):
        folder_for(out, scratch)
