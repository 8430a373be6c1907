import io

import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.writer import write_samples

# A name of more than 100 bytes, or beyond ASCII, needs a header of its own.
KEYS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="."), min_size=1)
LONG_KEYS = KEYS.map(lambda key: key * (1 + 300 // len(key)))
FILES = st.dictionaries(
    st.sampled_from(["jpg", "json", "xml", "cls"]), st.binary(max_size=2000), min_size=1
)


@given(st.lists(st.tuples(KEYS | LONG_KEYS, FILES), max_size=5))
def test_the_bytes_are_those_of_webdataset(samples):
    ours, theirs = io.BytesIO(), io.BytesIO()
    write_samples(ours, samples)
    with webdataset.TarWriter(
        theirs, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False
    ) as writer:
        for key, files in samples:
            writer.write({"__key__": key, **files})
    assert ours.getvalue() == theirs.getvalue()
