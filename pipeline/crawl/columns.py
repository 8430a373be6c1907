"""Columns of Arrow tables: which one holds the images, which ones say something of them."""

import json
from typing import Any

import pyarrow as pa

from pipeline.crawl.rows import IMAGE_COLUMNS, PATH_COLUMNS, Columns

_types = pa.types


def find_columns(schema: Any) -> Columns:
    """Find images and classes in an Arrow schema.

    Images are a column of bytes, a column of structs with `bytes` (Hugging Face's `Image`), or one
    of paths. Where several could be meant, it is the one that Hugging Face's metadata call so,
    then the one whose name comes first in `IMAGE_COLUMNS`.

    Returns:
        The columns; `images` and `paths` are empty where nothing holds images.
    """
    features = _features(schema)
    images = [field.name for field in schema if _holds_bytes(field.type)]
    texts = [field.name for field in schema if _is_text(field.type)]
    classes = {
        name: tuple(map(str, feature["names"]))
        for name, feature in features.items()
        if feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)
    }

    def rank(name: str) -> tuple[bool, int]:
        is_meant = features.get(name, {}).get("_type") == "Image"
        known = IMAGE_COLUMNS.index(name) if name in IMAGE_COLUMNS else len(IMAGE_COLUMNS)
        return not is_meant, known

    images.sort(key=rank)
    is_clear = len(images) == 1 or (images and rank(images[0]) < (True, len(IMAGE_COLUMNS)))
    if is_clear:
        return Columns(tuple(images[:1]), classes=classes)
    meant = [name for name in texts if not rank(name)[0]]
    paths = meant or [name for name in PATH_COLUMNS if name in texts]
    return Columns((), tuple(paths[:1]), classes=classes)


def plain_names(schema: Any) -> list[str]:
    """List the columns to read: images, and values without parts; no other bytes."""
    columns = find_columns(schema)
    return [
        field.name
        for field in schema
        if field.name in (*columns.images, *columns.paths) or _is_plain(field.type)
    ]


def column_values(column: Any) -> list[Any]:
    """Read a column into Python; texts that are not UTF-8 are escaped, dates become text."""
    kind = column.type
    if _types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if _types.is_temporal(kind) or _types.is_decimal(kind):
        return list(column.cast(pa.string()).to_pylist())
    if _is_text(kind):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "backslashreplace") for text in raw]
    return list(column.to_pylist())


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Read what Hugging Face says of the columns; nothing where that is not to be understood."""
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = about["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _holds_bytes(kind: Any) -> bool:
    if _types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        return "bytes" in fields and _is_bytes(fields["bytes"])
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    return bool(_types.is_binary(kind) or _types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    return bool(_types.is_string(kind) or _types.is_large_string(kind))


def _is_plain(kind: Any) -> bool:
    if _types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    is_number = _types.is_integer(kind) or _types.is_floating(kind) or _types.is_boolean(kind)
    is_date = _types.is_temporal(kind) or _types.is_decimal(kind)
    return bool(_is_text(kind) or is_number or is_date)
