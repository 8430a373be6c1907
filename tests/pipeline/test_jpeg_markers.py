from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.crawl.jpeg_header import MARKER
from pipeline.crawl.jpeg_markers import find_marker

PIECES = st.sampled_from(
    [
        bytes(9),
        b"\x05",
        b"\xff",
        b"\xff\0",
        b"\xff\x01",
        b"\xcf",
        b"\xd0",
        b"\xd7",
        b"\xd8",
        b"\xfe",
    ]
)


@settings(deadline=None)  # The first call compiles.
@given(st.lists(PIECES, max_size=40).map(b"".join), st.integers(0, 60))
def test_the_marker_is_the_first_by_the_rule(data, start):
    found = MARKER.search(data, start)
    assert find_marker(data, start) == (found.start() if found else -1)


@settings(deadline=None)  # The first call compiles.
@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 20))
def test_a_marker_is_found_wherever_it_lies(before, behind, start):
    data = bytes(before) + b"\xff\xd9" + bytes(behind)
    assert find_marker(data, min(start, before)) == before
    assert find_marker(data, before + 1) == -1
