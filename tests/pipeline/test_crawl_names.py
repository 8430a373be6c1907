import os

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.sources.names import escape

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name)


@given(NAMES, NAMES)
def test_no_two_names_share_an_escaped_form(a, b):
    names = os.fsdecode(a), os.fsdecode(b)
    assert (escape(names[0]) == escape(names[1])) == (a == b)
    escape(names[0]).encode()  # Plain Unicode: no surrogate is left.
