import re

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest.gate.kernels import find_segments

MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # Not a stuffed zero, not a restart.
PIECES = st.sampled_from(
    [
        bytes(9),
        b"\x05",
        b"\xff",
        b"\xff\0",
        b"\xff\x01",
        b"\xff\xd0",
        b"\xff\xd8",
        b"\xff\xd9",
        b"\xff\xda\0\x02",
        b"\xff\xda\0\x04",
        b"\xff\xe1\0\x02",
        b"\xff\xfe\0\x09",
        b"\0\x03",
        b"\xcf",
        b"\xd7",
        b"\xfe",
    ]
)


def slow_segments(data):
    """Walk a JPEG by regular expressions."""
    found, position = [], 2
    while match := MARKER.search(data, position):
        start, position = match.span()
        marker = data[start + 1]
        if marker == 0xD9:
            return [*found, [marker, start, position, position]], False
        if marker == 0xD8:
            return found, True
        length = data[position : position + 2]
        end = position + int.from_bytes(length, "big")
        if len(length) < 2 or end > len(data):
            return found, False
        if int.from_bytes(length, "big") < 2:
            return found, True
        position = end
        if marker == 0xDA:
            following = MARKER.search(data, end)
            coded = data[end : following.start() if following else len(data)]
            position = end + len(coded.rstrip(b"\xff"))
        found.append([marker, start, end, position])
    return found, False


@settings(deadline=None, max_examples=1000)  # The first call compiles.
@given(st.lists(PIECES, max_size=40).map(b"".join))
def test_segments_are_those_of_a_slow_walk(rest):
    data = b"\xff\xd8" + rest
    assert find_segments(data) == slow_segments(data)


def test_many_segments_are_found():
    data = b"\xff\xd8" + 1000 * b"\xff\xfe\0\x03x" + b"\xff\xd9"
    segments, _ = find_segments(data)
    assert len(segments) == 1001
    assert segments == slow_segments(data)[0]


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(0, 100))
def test_a_marker_is_found_wherever_it_lies(before, behind):
    data = b"\xff\xd8\xff\xda\0\x02" + bytes(before) + b"\xff\xd9" + bytes(behind)
    end = 6 + before
    assert find_segments(data) == ([[0xDA, 2, 6, end], [0xD9, end, end + 2, end + 2]], False)
