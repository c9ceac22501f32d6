"""Whether two schemas have no value in common, so that `oneOf` is the same as `anyOf`. Pure; called by `gbnf.py`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

_OF_PYTHON = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}


def are_disjoint(parts: list[dict[str, Any]], root: dict[str, Any]) -> bool:
    """Whether no value fits two of `parts`, as far as types, values of enums and required properties tell. `root` has the definitions."""
    return all(
        _disjoint(one, other, root)
        for first, second in combinations(parts, 2)
        for one in _alternatives(first, root)
        for other in _alternatives(second, root)
    )


def _alternatives(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a schema may stand for; definitions that lead to themselves were refused before."""
    if "$ref" in schema:
        yield from _alternatives(referred(schema["$ref"], root), root)
    elif "anyOf" in schema or "oneOf" in schema:
        for part in schema.get("anyOf") or schema["oneOf"]:
            yield from _alternatives(part, root)
    else:
        yield schema


def referred(target: str, root: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference names."""
    if target == "#":
        return root
    _, section, name = target.split("/")
    found: dict[str, Any] = root[section][name]
    return found


def _kind(schema: dict[str, Any]) -> str:
    return "number" if schema.get("type") == "integer" else str(schema.get("type", "any"))


def _disjoint(one: dict[str, Any], other: dict[str, Any], root: dict[str, Any]) -> bool:
    if "enum" in one and "enum" in other:
        return not any(type(a) is type(b) and a == b for a in one["enum"] for b in other["enum"])
    if "enum" in one or "enum" in other:
        values, kind = (one["enum"], _kind(other)) if "enum" in one else (other["enum"], _kind(one))
        return kind not in ("any", *(_OF_PYTHON[type(value)] for value in values))
    kinds = {_kind(one), _kind(other)}
    if len(kinds) == 2:
        return "any" not in kinds
    return kinds == {"object"} and any(
        are_disjoint([one["properties"][name], other["properties"][name]], root)
        for name in set(one.get("required", ())) & set(other.get("required", ()))
        if "enum" in one["properties"][name] and "enum" in other["properties"][name]
    )
