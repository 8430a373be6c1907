import fsspec
import pytest

from pipeline.config import ConfigError
from pipeline.shards.third_party.listing import list_shards


@pytest.fixture
def tars(tmp_path):
    """Files a/0.tar a/1.tar a/1.json a/b/2.tar and [c]/3.tar."""
    for name in ("a/0.tar", "a/1.tar", "a/1.json", "a/b/2.tar", "[c]/3.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["a"], ["a/0.tar", "a/1.tar", "a/b/2.tar"]),
        (["a/1.tar", "a/0.tar"], ["a/1.tar", "a/0.tar"]),  # The order given is kept.
        (["a/*"], ["a/0.tar", "a/1.tar", "a/b/2.tar"]),
        (["a/?.tar"], ["a/0.tar", "a/1.tar"]),
        (["**/*.tar"], ["[c]/3.tar", "a/0.tar", "a/1.tar", "a/b/2.tar"]),
        (["a/{1..0}.tar"], ["a/1.tar", "a/0.tar"]),
        (["a/{0,b/2}.tar"], ["a/0.tar", "a/b/2.tar"]),
        (["[c]"], ["[c]/3.tar"]),  # A name that exists is no pattern.
        (["a/1.json"], ["a/1.json"]),  # Nor is its ending questioned.
        (["a/../a/0.tar"], ["a/0.tar"]),
    ],
)
def test_inputs_name_shards_in_a_fixed_order(tars, inputs, names):
    found = list_shards([f"{tars}/{text}" for text in inputs])
    assert found == [f"{tars}/{name}" for name in names]


def test_a_file_url_is_a_path(tars):
    found = list_shards([f"file://{tars}/a/{{0..1}}.tar", f"file://{tars}/a/b"])
    assert found == [f"{tars}/a/0.tar", f"{tars}/a/1.tar", f"{tars}/a/b/2.tar"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["a/9.tar"], "9.tar.* is not an existing file"),
        (["a/{0..3}.tar"], "2.tar.* is not an existing file"),
        (["a/*.zip"], "matches no .tar file"),
        (["a/{0..1.tar"], "unbalanced braces"),
        (["a/{0..99999999}.tar"], "expands to more than 1000000 shards"),
        (["a/" + "{a,b}" * 30], "expands to more than 1000000 shards"),
        (["a", "a/1.tar"], "1.tar.* is named twice"),
    ],
)
def test_inputs_that_name_no_shard_are_one_clear_line(tars, inputs, message):
    with pytest.raises(ConfigError, match=message):
        list_shards([f"{tars}/{text}" for text in inputs])


@pytest.mark.parametrize("text", ["pipe:cat x.tar", "ftp://host/x.tar", "gopher://host/x.tar"])
def test_schemes_that_nobody_allowed_are_refused(text):
    with pytest.raises(ConfigError, match="scheme"):
        list_shards([text])


def test_a_pattern_of_urls_is_listed_by_their_file_system():
    system = fsspec.filesystem("memory")
    for name in ("1.tar", "0.tar", "0.json", "b/2.tar"):
        system.pipe(f"/listing/{name}", b"")
    below = ["memory:///listing/0.tar", "memory:///listing/1.tar"]
    assert list_shards(["memory://listing/*"]) == below
    assert list_shards(["memory://listing"]) == [*below, "memory:///listing/b/2.tar"]
    given = [f"memory://listing/{n}.tar" for n in range(2)]
    assert list_shards(["memory://listing/{0..1}.tar"]) == given  # As given, and not looked for.
    with pytest.raises(ConfigError, match=r"matches no \.tar file"):
        list_shards(["memory://listing/*.zip"])
    signed = "https://host/a.tar?signature=x*y"
    assert list_shards([signed]) == [signed]
