"""Columns of tables: which one is the image, the label, a path, and their values in Python."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import ConfigError

IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo"),
    *("image_bytes", "bytes", "data", "content"),
)
"""Columns of encoded images; the first that is present is used."""
GENERAL_COLUMNS = frozenset(("image_bytes", "bytes", "data", "content"))
"""Those whose text is no path where another column is one."""
FILE_NAME = "file_name"
"""Where Hugging Face's metadata keeps the path, whatever other columns hold."""
PATH_COLUMNS = ("image_path", FILE_NAME, "filename", "file_path", "path", "file", "image")
"""Columns of paths relative to the table."""
LABEL_COLUMNS = ("label", "labels", "class")
"""Columns of labels; the first that is present is used."""
_types = pa.types


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of a table are."""

    images: tuple[str, ...]
    """Columns of bytes, or of mappings with `bytes` and `path`; the first non-null one is used."""
    paths: tuple[str, ...] = ()
    """Columns of paths relative to the table's folder; used where there are no bytes."""
    has_base64: bool = False
    """Whether images are base64; text that is not is a path."""
    label: str | None = None
    """Column of labels; None where a row tells by its keys."""
    names: tuple[str, ...] = ()
    """Classes by number."""
    read: tuple[str, ...] = ()
    """All columns to read."""
    notes: tuple[str, ...] = ()
    """What each row is noted with: the columns that are passed over."""
    holds_lists: bool = False
    """Whether a row may hold several images."""


LINE_COLUMNS = Columns(IMAGE_COLUMNS, PATH_COLUMNS, has_base64=True)


def find_columns(schema: Any, name: str, *, with_label: bool) -> Columns:
    """Find images and labels in an Arrow schema.

    Images are a column of bytes, a column of structs with `bytes` (Hugging Face's `Image`), a
    column of lists of these, or one of paths. Of several candidates, the one that Hugging Face's
    metadata declares as an image wins, then the one whose name comes first in `IMAGE_COLUMNS`.
    Of bytes of a fixed size, such as hashes, only a column is taken that is declared or named so.

    Args:
        schema: Of the table.
        name: Of the table, for the message.
        with_label: Whether labels are wanted.

    Returns:
        The columns; `images` and `paths` are empty where there are no images.

    Raises:
        ConfigError: Several columns may be the label.
    """
    features = _features(schema)
    images, paths = _find_images(schema, features)
    label, names = _find_label(schema.names, features, name) if with_label else (None, ())
    used = {*images, *paths, label}
    read = [field.name for field in schema if field.name in used or is_scalar(field.type)]
    passed = sorted(set(schema.names) - set(read))
    return Columns(
        images,
        paths,
        label=label,
        names=names,
        read=tuple(read),
        notes=tuple(f"column_passed_over: {name}" for name in passed),
        holds_lists=any(is_list(_inner(schema.field(name).type)) for name in images),
    )


def _find_images(
    schema: Any, features: Mapping[str, Mapping[str, Any]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    def rank(name: str) -> tuple[bool, int]:
        is_declared = features.get(name, {}).get("_type") == "Image"
        known = IMAGE_COLUMNS.index(name) if name in IMAGE_COLUMNS else len(IMAGE_COLUMNS)
        return not is_declared, known

    unknown = (True, len(IMAGE_COLUMNS))
    images = [
        field.name
        for field in schema
        if _holds_bytes(field.type)
        and (rank(field.name) < unknown or not _types.is_fixed_size_binary(_inner(field.type)))
    ]
    images.sort(key=rank)
    if len(images) == 1 or (images and rank(images[0]) < unknown):
        return (images[0],), ()
    texts = [field.name for field in schema if _is_text(_inner(field.type))]
    declared = [name for name in texts if not rank(name)[0]]
    paths = declared or [name for name in PATH_COLUMNS if name in texts]
    return (), tuple(paths[:1])


def _find_label(
    columns: Sequence[str], features: Mapping[str, Mapping[str, Any]], name: str
) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of labels, and its classes by number."""
    declared = {
        column: tuple(map(str, feature["names"]))
        for column, feature in features.items()
        if column in columns
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }
    found = label_column(columns)
    if found is None and len(declared) > 1:
        raise ConfigError(
            f"table (={name}) has {len(declared)} columns of classes, {', '.join(declared)}, and "
            "none is called label; rename one to label, or give the source `labels: false`."
        )
    if found is None:
        found = next(iter(declared), None)
    return found, declared.get(found or "", ())


def label_column(columns: Iterable[str]) -> str | None:
    """Return the column of labels by its name, None where there is none.

    >>> label_column(["class", "label"]), label_column(["sex"])
    ('label', None)
    """
    there = set(columns)
    return next((column for column in LABEL_COLUMNS if column in there), None)


def column_values(column: Any) -> list[Any]:
    """Convert a column to Python; text that is not UTF-8 is escaped, dates become text."""
    column = _decoded(column)
    kind = column.type
    if _types.is_temporal(kind) or _types.is_decimal(kind):
        return list(column.cast(pa.string()).to_pylist())
    if _is_text(kind):
        if _types.is_string_view(kind):
            column = column.cast(pa.large_string())
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "backslashreplace") for text in raw]
    return list(column.to_pylist())


def _decoded(column: Any) -> Any:
    """Undo dictionaries, runs and extension types."""
    while True:
        kind = column.type
        if isinstance(kind, pa.BaseExtensionType):
            column = column.storage
        elif _types.is_dictionary(kind):
            column = column.dictionary_decode()
        elif _types.is_run_end_encoded(kind):
            column = pc.run_end_decode(column)
        else:
            return column


def _inner(kind: Any) -> Any:
    """Return the type of the values behind dictionaries, runs and extension types."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif _types.is_dictionary(kind) or _types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def is_list(kind: Any) -> bool:
    """Tell whether the values of a type are lists."""
    return bool(
        _types.is_list(kind) or _types.is_large_list(kind) or _types.is_fixed_size_list(kind)
    )


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Read Hugging Face's description of the columns; empty where it cannot be parsed."""
    try:
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_bytes(kind: Any) -> bool:
    kind = _inner(kind)
    if is_list(kind):
        kind = _inner(kind.value_type)
        if not _types.is_struct(kind):  # A list of bytes may be anything.
            return False
    if not _types.is_struct(kind):
        return _is_bytes(kind)
    fields = {kind.field(i).name: _inner(kind.field(i).type) for i in range(kind.num_fields)}
    if "bytes" not in fields:
        return False
    # Without any value its type is unknown: then all images are at paths.
    is_path_only = _types.is_null(fields["bytes"]) and _is_text(fields.get("path"))
    return _is_bytes(fields["bytes"]) or is_path_only


def _is_bytes(kind: Any) -> bool:
    return bool(
        _types.is_binary(kind)
        or _types.is_large_binary(kind)
        or _types.is_binary_view(kind)
        or _types.is_fixed_size_binary(kind)
    )


def _is_text(kind: Any) -> bool:
    return kind is not None and bool(
        _types.is_string(kind) or _types.is_large_string(kind) or _types.is_string_view(kind)
    )


def is_scalar(kind: Any) -> bool:
    """Tell whether the values of a type are text, numbers, or dates."""
    kind = _inner(kind)
    is_number = _types.is_integer(kind) or _types.is_floating(kind) or _types.is_boolean(kind)
    is_date = _types.is_temporal(kind) or _types.is_decimal(kind)
    return bool(_is_text(kind) or is_number or is_date)
