"""Whether a JSON value fits a schema of the kind that xi honours, by the words of JSON Schema. For tests."""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def fits(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether `value` is valid against `schema`; `root` is the schema that its references mean."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    return all(_CHECKS[name](value, wanted, schema, root) for name, wanted in schema.items() if name in _CHECKS)


def _type(value: Any, wanted: Any, schema: Any, root: Any) -> bool:
    return any(_is(value, kind) for kind in ([wanted] if isinstance(wanted, str) else wanted))


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _number(compare: Callable[[Any, Any], bool]) -> Callable[..., bool]:
    return lambda value, wanted, schema, root: not _is(value, "number") or compare(value, wanted)


def _sized(kind: str, compare: Callable[[int, int], bool]) -> Callable[..., bool]:
    return lambda value, wanted, schema, root: not _is(value, kind) or compare(len(value), wanted)


def _reference(value: Any, wanted: str, schema: Any, root: Any) -> bool:
    found = root
    for part in wanted.split("/")[1:]:
        found = found[part]
    return fits(value, found, root)


def _properties(value: Any, wanted: dict[str, Any], schema: Any, root: Any) -> bool:
    return not isinstance(value, dict) or all(fits(value[name], inner, root) for name, inner in wanted.items() if name in value)


def _others(value: Any, wanted: Any, schema: Any, root: Any) -> bool:
    known = schema.get("properties", {})
    return not isinstance(value, dict) or all(fits(one, wanted, root) for name, one in value.items() if name not in known)


def _items(value: Any, wanted: Any, schema: Any, root: Any) -> bool:
    return not isinstance(value, list) or all(fits(one, wanted, root) for one in value[len(schema.get("prefixItems", [])) :])


def _first_items(value: Any, wanted: list[Any], schema: Any, root: Any) -> bool:
    return not isinstance(value, list) or all(fits(one, inner, root) for one, inner in zip(value, wanted, strict=False))


def _format(value: Any, wanted: str, schema: Any, root: Any) -> bool:
    try:
        _FORMATS[wanted](value)
    except ValueError:
        return False
    return True


_FORMATS: dict[str, Callable[[str], Any]] = {
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "date-time": datetime.datetime.fromisoformat,
    "uuid": uuid.UUID,
}
_CHECKS: dict[str, Callable[..., bool]] = {
    "type": _type,
    "enum": lambda value, wanted, schema, root: any(_same(value, one) for one in wanted),
    "const": lambda value, wanted, schema, root: _same(value, wanted),
    "$ref": _reference,
    "anyOf": lambda value, wanted, schema, root: any(fits(value, part, root) for part in wanted),
    "oneOf": lambda value, wanted, schema, root: sum(fits(value, part, root) for part in wanted) == 1,
    "allOf": lambda value, wanted, schema, root: all(fits(value, part, root) for part in wanted),
    "properties": _properties,
    "required": lambda value, wanted, schema, root: not isinstance(value, dict) or all(name in value for name in wanted),
    "additionalProperties": _others,
    "items": _items,
    "prefixItems": _first_items,
    "minItems": _sized("array", lambda size, wanted: size >= wanted),
    "maxItems": _sized("array", lambda size, wanted: size <= wanted),
    "minLength": _sized("string", lambda size, wanted: size >= wanted),
    "maxLength": _sized("string", lambda size, wanted: size <= wanted),
    "pattern": lambda value, wanted, schema, root: not isinstance(value, str) or re.search(wanted, value, re.ASCII) is not None,
    "format": _format,
    "minimum": _number(lambda value, wanted: value >= wanted),
    "maximum": _number(lambda value, wanted: value <= wanted),
    "exclusiveMinimum": _number(lambda value, wanted: value > wanted),
    "exclusiveMaximum": _number(lambda value, wanted: value < wanted),
}
