from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from pipeline.config import Config, ConfigError, load, override, parse


class Sgd(Config):
    name: Literal["sgd"]
    lr: float = Field(gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class Adam(Config):
    name: Literal["adam"]
    lr: float = Field(gt=0)
    beta: float = Field(0.99, ge=0, lt=1)


class Order(Config):
    global_batch: int = Field(gt=0)
    num_lanes: int = Field(2, gt=0)

    @model_validator(mode="after")
    def _lanes_share_a_batch(self):
        if self.global_batch % self.num_lanes:
            raise ValueError(
                f"global_batch (={self.global_batch}) must be a multiple of "
                f"num_lanes (={self.num_lanes})."
            )
        return self


class Stage(Config):
    name: Literal["head", "tail"]
    width: int = 8


class Run(Config):
    order: Order
    optim: Annotated[Sgd | Adam, Field(discriminator="name")] | None = None
    stages: tuple[Stage, ...] = ()
    sizes: tuple[int, ...] = ()


WHOLE = """
order: {global_batch: 8}
optim: {name: sgd, lr: 0.1}
"""


@pytest.fixture
def load_text(tmp_path):
    def load_it(text, *overrides):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        try:
            return load(Run, path, overrides)
        except ConfigError as error:  # So that a table can hold the message without the path.
            raise ConfigError(str(error).replace(str(path), "FILE")) from error

    return load_it


def test_a_file_becomes_frozen_sections_with_their_defaults(load_text):
    run = load_text(WHOLE)
    assert run.order == Order(global_batch=8, num_lanes=2)
    assert run.optim == Sgd(name="sgd", lr=0.1, momentum=0.9)
    with pytest.raises(ValidationError, match="frozen"):
        run.order.num_lanes = 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ordr: {global_batch: 8}", "FILE: order is missing; the config must give it. (1 more)"),
        (
            "order: {global_bach: 8, global_batch: 8}",
            "FILE: order.global_bach is no known key; did you mean global_batch?",
        ),
        # Nothing is near: all known keys of that section, and of no other.
        (
            "order: {global_batch: 8, zzz: 8}",
            "FILE: order.zzz is no known key; known keys: global_batch, num_lanes.",
        ),
        ("order: {}", "FILE: order.global_batch is missing; the config must give it."),
        # The tag of a union is no key of the file.
        (
            "order: {global_batch: 8}\noptim: {name: sgd}",
            "FILE: optim.lr is missing; the config must give it.",
        ),
        (
            "order: {global_batch: 8}\noptim: {name: sgd, lr: -1}",
            "FILE: optim.lr (=-1): Input should be greater than 0",
        ),
        # A key of the other member of the union: the nearest is looked for in the chosen one.
        (
            "order: {global_batch: 8}\noptim: {name: adam, lr: 1, momentun: 0.5}",
            "FILE: optim.momentun is no known key; known keys: beta, lr, name.",
        ),
        (
            "order: {global_batch: 8}\noptim: {name: sgd, lr: 1, momentun: 0.5}",
            "FILE: optim.momentun is no known key; did you mean momentum?",
        ),
        # A list: its positions are part of the path.
        (
            "order: {global_batch: 8}\nstages: [{name: head}, {name: tail, widht: 3}]",
            "FILE: stages.1.widht is no known key; did you mean width?",
        ),
        (
            "order: {global_batch: 8}\nsizes: [1, x]",
            "FILE: sizes.1 (=x): Input should be a valid integer, unable to parse string as an "
            "integer",
        ),
        (
            "order: {global_batch: many}",
            "FILE: order.global_batch (=many): Input should be a valid integer, unable to parse "
            "string as an integer",
        ),
        # A law between two keys: no single value is to blame, the text names both.
        (
            "order: {global_batch: 8, num_lanes: 3}",
            "FILE: order: global_batch (=8) must be a multiple of num_lanes (=3).",
        ),
        ("- 1\n- 2", "config (=FILE) must be a mapping of keys, not list."),
        ("", "config (=FILE) must be a mapping of keys, not NoneType."),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_line(load_text, text, message):
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert str(caught.value) == message


def test_an_unknown_member_of_a_union_lists_the_known_ones(load_text):
    with pytest.raises(ConfigError, match=r"^FILE: optim: .*'sgdd'.*'sgd', 'adam'"):
        load_text("order: {global_batch: 8}\noptim: {name: sgdd, lr: 1}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("order: {global_batch: 8", r"not valid YAML: .*line 1"),
        # A date that does not exist: PyYAML raises a bare ValueError.
        ("order: 2024-13-45", r"not valid YAML: month must be in 1\.\.12"),
        ("order: !!python/object:os.system {}", r"not valid YAML: could not determine a const"),
        ("order: !!python/object/apply:os.getcwd []", r"not valid YAML: could not determine"),
    ],
)
def test_bad_or_hostile_yaml_is_one_line_that_names_the_file(load_text, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_text(text)
    assert str(caught.value).startswith("config (=FILE) is ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00order")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(Run, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config \(=.*none.yaml\) cannot be read: No such file"):
        load(Run, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("order.global_batch=6", lambda run: run.order.global_batch == 6),
        ("optim.lr=1e-3", lambda run: run.optim.lr == 0.001),  # A string to YAML 1.1.
        ("sizes=[1, 2]", lambda run: run.sizes == (1, 2)),
        ("optim=null", lambda run: run.optim is None),
        (
            "optim={name: adam, lr: 2, beta: 0.5}",
            lambda run: getattr(run.optim, "beta", None) == 0.5,
        ),
    ],
)
def test_an_override_is_read_as_yaml_and_wins(load_text, override, read):
    assert not read(load_text(WHOLE))
    assert read(load_text(WHOLE, override))


def test_the_last_of_two_overrides_wins(load_text):
    assert load_text(WHOLE, "optim.lr=2", "optim.lr=3").optim.lr == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("order.global_batch", "override (=order.global_batch) must have the form key.path=value."),
        ("=3", "override (==3) must have the form key.path=value."),
        ("order..x=3", "override (=order..x=3) must have the form key.path=value."),
        (
            "order.global_batch.x=3",
            "override (=order.global_batch.x=3): global_batch is a value, not a section.",
        ),
        ("sizes=[1", "override (=sizes=[1): the value is not valid YAML."),
        ("sizes=2024-13-45", "override (=sizes=2024-13-45): the value is not valid YAML."),
        # Overrides go through the same laws as the file.
        ("order.num_lane=4", "FILE: order.num_lane is no known key; did you mean num_lanes?"),
        ("ordre.num_lanes=4", "FILE: ordre is no known key; did you mean order?"),
    ],
)
def test_a_mistake_in_an_override_is_one_clear_line(load_text, override, message):
    with pytest.raises(ConfigError) as caught:
        load_text(WHOLE, override)
    assert str(caught.value) == message


class Any(Config):
    value: bool | int | float | str | None = None


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "any.yaml"
    path.write_text("{}")
    return path


@settings(max_examples=200, deadline=None)
@given(
    value=st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8")),
        st.sampled_from(
            ["", "3", "yes", "null", "1e-3", "a: b", "[1", "2024-13-45", "x #y", "\U0001f600"]
        ),
    )
)
def test_a_written_override_is_read_back_as_it_was(empty, value):
    read = load(Any, empty, [override("value", value)]).value
    assert read == value
    assert type(read) is type(value)


def test_parse_names_its_source_and_counts_further_mistakes():
    with pytest.raises(
        ConfigError, match=r"^the job: order\.global_batch is missing.* \(2 more\)$"
    ):
        parse(Run, {"order": {"num_lanes": 0, "x": 1}}, "the job")
