"""`tessera config`: every key of the configs as Markdown, made from the models that check them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types as limits
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.atomic import write_atomic

_PREFACE = """# Every key of the configs

Written by `tessera config --out configs/README.md` from the models that check the files: change
those. Sections nest as in the YAML files beside this one; a file may omit what has a default.
"""
_WORDS = {
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Path: ("path", "paths"),
}
_BOUNDS = {
    limits.Ge: ("ge", "≥ {:,}"),
    limits.Gt: ("gt", "> {:,}"),
    limits.Le: ("le", "≤ {:,}"),
    limits.Lt: ("lt", "< {:,}"),
    limits.MinLen: ("min_length", "{} or more entries"),
    limits.MaxLen: ("max_length", "{} or fewer entries"),
}
_Titles = Mapping[type[BaseModel], str]


def config(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown file; default standard output.")
    ] = None,
) -> None:
    """List every key of the configs: type, default, limits, meaning.

    Example: tessera config --out configs/README.md
    """
    text = reference()
    if out:
        write_atomic(out, text.encode())
    else:
        typer.echo(text, nl=False)


def reference() -> str:
    """Return the Markdown of the configs of runs, shards and sources."""
    from pipeline.ingest.config import ShardConfig
    from pipeline.ingest.sources.source_list import SourceList
    from training.run import RunConfig

    parts = [_PREFACE]
    for heading, model in (
        ("Runs: `tessera pretrain`, `transfer` and `submit`", RunConfig),
        ("Shards: `tessera shard --config`", ShardConfig),
        ("Sources: `tessera shard SOURCES.yaml`", SourceList),
    ):
        titles = dict(_titles(model, ""))
        titles.pop(model, None)
        parts.append(f"## {heading}\n\n{_section(model, titles)}")
        parts += [f"### {title}\n\n{_section(one, titles)}" for one, title in titles.items()]
    return "\n".join(parts)


def _titles(model: type[BaseModel], path: str) -> dict[type[BaseModel], str]:
    """Return all sections below `model` in the order of the keys, each with its first path."""
    found: dict[type[BaseModel], str] = {}
    for key, field in model.model_fields.items():
        for child in _models(field.annotation):
            title = f"{path}{key}"
            kind = child.model_fields.get("name")
            if (
                kind
                and get_origin(kind.annotation) is Literal
                and len(get_args(kind.annotation)) == 1
            ):
                title += f": {get_args(kind.annotation)[0]}"
            for one, own in ({child: title} | _titles(child, f"{title}.")).items():
                found.setdefault(one, own)
    return found


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _section(model: type[BaseModel], titles: _Titles) -> str:
    lines = [_one_line(model.__doc__ or ""), ""] if model.__doc__ else []
    lines += ["| key | type | default | limits | meaning |", "|---|---|---|---|---|"]
    for key, field in model.model_fields.items():
        cells = (
            f"`{key}`",
            _words(field.annotation, titles, 0),
            _default(field),
            ", ".join(_limits(field.metadata)),
            _one_line(field.description or ""),
        )
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _words(annotation: Any, titles: _Titles, plural: int) -> str:
    """Say a type in plain words; `plural` is 1 for several of it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation][plural]
    if annotation in titles:
        return f"[{titles[annotation]}](#{_anchor(titles[annotation])})"
    if origin is Annotated:
        ranges = _limits(parts[1:])
        return " ".join((_words(parts[0], titles, plural), ", ".join(ranges))).rstrip()
    if origin is Literal:
        return _either([f"`{_yaml(value)}`" for value in parts])
    if origin in (Union, UnionType):
        words = [_words(part, titles, plural) for part in parts if part is not NoneType]
        return _either(words + ["null"] * (NoneType in parts))
    return _collection_words(annotation, titles)


def _collection_words(annotation: Any, titles: _Titles) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return f"mapping of {_words(parts[0], titles, 1)} to {_words(parts[1], titles, 1)}"
    if origin is tuple:
        count = "" if parts[-1] is Ellipsis else f"{len(parts)} "
        return f"list of {count}{_words(parts[0], titles, 1)}"
    raise TypeError(f"type (={annotation}) has no words; give it some in cluster/config.py.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "its defaults" if isinstance(value, BaseModel) else f"`{_yaml(value)}`"


def _limits(metadata: Sequence[Any]) -> list[str]:
    """Return the bounds among the metadata of a field; other metadata only converts values."""
    found = []
    for kind, (attribute, text) in _BOUNDS.items():
        found += [text.format(getattr(m, attribute)) for m in metadata if type(m) is kind]
    return found


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _yaml(value: Any) -> str:
    if isinstance(value, Path):
        return str(value).replace(str(Path.home()), "~")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, BaseModel):
        given = value.model_dump(exclude_defaults=True).items()
        return f"{{{', '.join(f'{key}: {_yaml(one)}' for key, one in given)}}}"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _anchor(title: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return "".join(c for c in title.lower() if c.isalnum() or c in " -_").replace(" ", "-")


def _one_line(text: str) -> str:
    return " ".join(text.split())
