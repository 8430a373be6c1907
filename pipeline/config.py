"""YAML into frozen pydantic models; every mistake becomes one clear line."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class ConfigError(ValueError):
    """Input a user can correct; the message is one line: what (= value), the law, what to do."""


class Config(BaseModel):
    """A section of a configuration file: immutable, closed, documented by its attribute strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


C = TypeVar("C", bound=BaseModel)


def load(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file and `key.path=value` overrides into `model`.

    Raises:
        ConfigError: The file is unreadable, not a mapping, or breaks a law of `model`.
    """
    return parse(model, read_yaml(path, overrides), str(path))


def read_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file and set `key.path=value` overrides, before any model checks them.

    Raises:
        ConfigError: The file is unreadable or not a mapping, or an override has another form.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config (={path}) cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or no date: 2024-13-45.
        text = " ".join(str(error).split())
        raise ConfigError(f"config (={path}) is not valid YAML: {text}.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"config (={path}) must be a mapping of keys, not {type(raw).__name__}.")
    for override in overrides:
        _apply(raw, override)
    return raw


def parse(model: type[C], raw: Mapping[str, Any], source: str) -> C:
    """Validate `raw` against `model`; `source` names the origin in the message.

    Raises:
        ConfigError: Names source, key path, value, law and the nearest known key of the first
            mistake, and how many more there are.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        more = f" ({len(details) - 1} more)" if len(details) > 1 else ""
        raise ConfigError(f"{source}: {_explain(model, details[0])}{more}") from None


def override(key_path: str, value: object) -> str:
    """Write `key.path=value` so that `load` reads exactly `value` back."""
    text = yaml.safe_dump(value, width=2**31).removesuffix("\n").removesuffix("\n...")
    return f"{key_path}={text}"


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set `a.b=value` in place; the value is read as YAML, so 3 is a number and [1, 2] a list."""
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override (={override}) must have the form key.path=value.")
    node = raw
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override (={override}): {key} is a value, not a section.")
        node = child
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"override (={override}): the value is not valid YAML.") from None


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    loc = detail["loc"]
    path = ".".join(str(part) for part in _resolve(model, loc).path)
    if detail["type"] == "extra_forbidden":
        known = list(_resolve(model, loc[:-1]).section.model_fields)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}."
        return f"{path} is no known key; {hint}"
    if detail["type"] == "missing":
        return f"{path} is missing; the config must give it."
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    if isinstance(value, Mapping | list | BaseModel) or not path:
        return f"{path}: {message}" if path else message
    return f"{path} (={value}): {message}"


@dataclass(frozen=True)
class _KeyPath:
    path: list[int | str]
    section: type[BaseModel]


def _resolve(model: type[BaseModel], loc: tuple[int | str, ...]) -> _KeyPath:
    """Follow pydantic's error location through sections, lists and tagged unions.

    The location holds the tag of a union ("optim", "sgd", "lr"); the file has no such key, so it
    is omitted from the path.
    """
    options, path = [model], []
    for part in loc:
        inner = [f.annotation for m in options for key, f in m.model_fields.items() if key == part]
        tagged = [m for m in options if part in _tags(m)]
        if not inner and tagged:
            options = tagged
            continue
        path.append(part)
        options = [m for annotation in inner for m in _models(annotation)] or options
    return _KeyPath(path, options[0])


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field else ()
