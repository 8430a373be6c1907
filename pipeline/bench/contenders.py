"""Who takes part: the loader, its peers, and the limits."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from pipeline.bench.work import LoaderWork, Variants

Name = Literal[
    "tessera",
    "webdataset",
    "files",
    "dali",
    "spdl",
    "litdata",
    "streaming",
    "decode_only",
    "read_only",
]


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the table."""

    name: Name
    title: str
    role: Literal["ours", "peer", "limit"]


CONTENDERS = (
    Contender("tessera", "Tessera", "ours"),
    Contender("webdataset", "webdataset + torchvision", "peer"),
    Contender("files", "loose files + torchvision", "peer"),
    Contender("dali", "DALI, its own reader", "peer"),
    Contender("spdl", "SPDL + torch", "peer"),
    Contender("litdata", "LitData + torchvision", "peer"),
    Contender("streaming", "Streaming + torchvision", "peer"),
    Contender("decode_only", "decode only", "limit"),
    Contender("read_only", "read only", "limit"),
)


def quick_names() -> tuple[Name, ...]:
    """Name the two strongest peers that are installed, beside ours and one limit."""
    named: tuple[Name, ...] = ("tessera", "webdataset", "spdl", "decode_only")
    # SPDL is named even where it is absent: its row says so.
    return named if find_spec("spdl") else (*named, "files")


def variants_of(name: Name, work: LoaderWork) -> Variants:  # noqa: C901 - a table in the form of a match
    """Import a contender and return what it offers.

    Raises:
        ImportError: Its package is not installed.
    """
    match name:
        case "tessera":
            from pipeline.bench.ours import variants
        case "webdataset":
            from pipeline.bench.torch_peers import webdataset_variants as variants
        case "files":
            from pipeline.bench.torch_peers import files_variants as variants
        case "dali":
            from pipeline.bench.dali_peer import variants
        case "spdl":
            from pipeline.bench.spdl_peer import variants
        case "litdata":
            from pipeline.bench.converted_peers import litdata_variants as variants
        case "streaming":
            from pipeline.bench.converted_peers import streaming_variants as variants
        case "decode_only":
            from pipeline.bench.limits import decode_variants as variants
        case "read_only":
            from pipeline.bench.limits import read_variants as variants
    return variants(work)
