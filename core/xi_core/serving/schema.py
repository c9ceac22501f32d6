"""JSON schemas of requests, checked and brought to a small form that every engine honours to the letter. Called by structured.py.

What comes out has, at each place, one of: `$ref` · `anyOf` · `oneOf` · `enum` · one `type` with the keywords of that type · nothing
(any value). Titles and the like are gone. An object that has `properties` has no others: leaving them out is always right.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xi_core.engine.formats import PATTERNS
from xi_core.errors import InvalidRequest

MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_COUNT = 2000
"""Highest `minItems`, `maxItems`, `minLength` and `maxLength`."""
MAX_SCHEMA_WAYS = 4096
MAX_SCHEMA_MERGES = 100

_NOTES = frozenset(
    ("title", "description", "default", "examples", "$schema", "$id", "$comment", "deprecated", "readOnly", "writeOnly", "discriminator")
)
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OF_TYPE: dict[str, tuple[str, ...]] = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": (),
    "null": (),
}
_PYTHON: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "null": (type(None),),
}  # fmt: skip
_ROOTS = ("$defs", "definitions")
_COMBINED = ("anyOf", "oneOf", "allOf", "$ref", "enum", "const")
_KNOWN = frozenset(("type", *_COMBINED, *_ROOTS, *(name for names in _OF_TYPE.values() for name in names)))


def normalise(schema: Any, param: str, *, loose: bool = False) -> dict[str, Any]:
    """The schema in its small form. Raises `InvalidRequest`, with `param`, naming the keyword that is wrong or not supported.

    `loose`: what is not supported is left out instead, so that more may fit; only size, depth and references are still checked.
    """
    if len(msgspec.json.encode(schema)) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"{param}: the schema is larger than {MAX_SCHEMA_BYTES // 1024} KiB", param=param)
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise InvalidRequest(f"{param}: the schema is nested more than {MAX_SCHEMA_DEPTH} deep", param=param)
    return _Schema(schema, param, loose).whole()


def _depth(value: Any) -> int:
    """Containers within each other, at most one more than is allowed. No recursion: the value may be nested as deep as JSON can be."""
    level, deep = [value], 0
    while level and deep <= MAX_SCHEMA_DEPTH:
        inner = [child for item in level for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())]
        deep += any(isinstance(item, dict | list) for item in level)
        level = inner
    return deep


class _Schema:
    """One schema on its way."""

    def __init__(self, root: Any, param: str, loose: bool) -> None:
        self._loose = loose
        self._root = root
        self._param = param
        self._merges = 0
        self._definitions: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        root = self._root if isinstance(self._root, dict) else {}
        names = [name for name in _ROOTS if name in root]
        for name in names:
            for key, definition in self._mapping(root[name], name).items():
                self._definitions[f"#/{name}/{key}"] = self._schema(definition, f"{name}.{key}")
        found = self._schema({name: value for name, value in root.items() if name not in _ROOTS}, "")
        self._check_cycles(found)
        known: dict[str, int] = {}
        if any(self._ways(one, known) > MAX_SCHEMA_WAYS for one in (found, *self._definitions.values())):
            raise self._wrong("", f"more than {MAX_SCHEMA_WAYS} alternatives in one place, through '$ref'")
        for name in names:
            prefix = f"#/{name}/"
            found[name] = {key.removeprefix(prefix): value for key, value in self._definitions.items() if key.startswith(prefix)}
        return found

    def _wrong(self, place: str, message: str) -> InvalidRequest:
        where = f" (at {place})" if place else ""
        return InvalidRequest(f"{self._param}: {message}{where}", param=self._param)

    def _schema(self, given: Any, place: str) -> dict[str, Any]:
        if not self._loose:
            return self._exact(given, place)
        if isinstance(given, dict):
            known = {name: value for name, value in given.items() if name in _KNOWN}
            given = {name: value for name, value in known.items() if name != "format" or value in PATTERNS}
        try:
            return self._exact(given, place)
        except InvalidRequest:
            kind = given.get("type") if isinstance(given, dict) else None
            return {"type": kind} if isinstance(kind, str) and kind in _OF_TYPE else {}

    def _exact(self, given: Any, place: str) -> dict[str, Any]:
        if given is True:
            return {}
        if not isinstance(given, dict):
            raise self._wrong(place, "a schema must be an object, or true")
        schema = {name: value for name, value in given.items() if name not in _NOTES}
        for name in schema:
            if name not in _KNOWN or name in _ROOTS:
                known = ", ".join(sorted(_KNOWN))
                raise self._wrong(place, f"the keyword '{name[:60]}' is not supported here; supported are: {known}")
        if isinstance(schema.get("allOf"), list) and (len(schema["allOf"]) > 1 or len(schema) > 1):
            return self._exact(self._merged(schema, place), place)
        for name in _COMBINED:
            if name in schema:
                return self._combined(name, schema, place)
        return self._typed(schema, place)

    # ---- combinations ----

    def _combined(self, name: str, schema: dict[str, Any], place: str) -> dict[str, Any]:
        beside = [other for other in schema if other != name and not (other == "type" and name in ("enum", "const"))]
        if beside:
            raise self._wrong(place, f"'{beside[0]}' beside '{name}' is not supported")
        value = schema[name]
        if name == "$ref":
            return self._reference(value, place)
        if name in ("enum", "const"):
            return self._values(value if name == "enum" else [value], schema.get("type"), place)
        if not isinstance(value, list) or not value:
            raise self._wrong(place, f"'{name}' must be a list of schemas")
        parts = [self._schema(part, f"{place}.{name}[{i}]".lstrip(".")) for i, part in enumerate(value)]
        return parts[0] if name == "allOf" else {name: parts}

    def _merged(self, schema: dict[str, Any], place: str) -> dict[str, Any]:
        """One schema for all of `allOf` and what stands beside it, where they don't say different things of the same."""
        self._merges += 1
        if self._merges > MAX_SCHEMA_MERGES:
            raise self._wrong(place, f"more than {MAX_SCHEMA_MERGES} of 'allOf', or one that leads to itself")
        found: dict[str, Any] = {}
        for part in ({name: value for name, value in schema.items() if name != "allOf"}, *schema["allOf"]):
            for name, value in self._opened(part, place).items():
                if name == "properties" and isinstance(value, dict) and isinstance(found.get(name, {}), dict):
                    value = (
                        {**found.get(name, {}), **value}
                        if all(found.get(name, {}).get(key, one) == one for key, one in value.items())
                        else None
                    )
                elif name == "required" and isinstance(value, list) and isinstance(found.get(name, []), list):
                    value = [*found.get(name, []), *value]
                elif name == "additionalProperties" or found.get(name, value) != value:
                    value = None
                if value is None:
                    raise self._wrong(place, f"'allOf' whose schemas differ in '{name[:60]}' is not supported; write them as one")
                found[name] = value
        return found

    def _opened(self, part: Any, place: str) -> dict[str, Any]:
        """A part of `allOf` as keywords: what it refers to, and what its own `allOf` says."""
        seen = 0
        while isinstance(part, dict) and "$ref" in part and seen <= MAX_SCHEMA_DEPTH:
            target = self._reference(part["$ref"], place)["$ref"]
            beside = {name: value for name, value in part.items() if name not in _NOTES and name != "$ref"}
            if beside or target == "#":
                raise self._wrong(place, "'$ref' of this kind within 'allOf' is not supported")
            _, section, name = target.split("/")
            part, seen = self._root[section][name], seen + 1
        if not isinstance(part, dict) or "$ref" in part:
            raise self._wrong(place, "'allOf' must be a list of schemas that are objects")
        plain = {name: value for name, value in part.items() if name not in _NOTES}
        if "allOf" in plain and isinstance(plain["allOf"], list):
            return self._merged(plain, place)
        return plain

    def _reference(self, target: Any, place: str) -> dict[str, Any]:
        root = self._root if isinstance(self._root, dict) else {}
        if target == "#":
            return {"$ref": "#"}
        parts = target.split("/") if isinstance(target, str) else []
        if len(parts) != 3 or parts[0] != "#" or parts[1] not in _ROOTS or "~" in target or "%" in target:
            raise self._wrong(place, "'$ref' must be '#', '#/$defs/NAME' or '#/definitions/NAME'")
        definitions = root.get(parts[1])
        if not isinstance(definitions, dict) or parts[2] not in definitions:
            raise self._wrong(place, f"'$ref' names '{target[:100]}', which the schema does not define")
        return {"$ref": target}

    def _values(self, values: Any, kind: Any, place: str) -> dict[str, Any]:
        if not isinstance(values, list) or not values:
            raise self._wrong(place, "'enum' must be a list of values")
        if kind is not None:
            values = [value for value in values if any(_is(value, one) for one in self._types(kind, place))]
        if not values:
            raise self._wrong(place, "'enum' has no value of that 'type'")
        return {"enum": values}

    def _check_cycles(self, root: dict[str, Any]) -> None:
        """Refuse definitions that are nothing but each other."""
        for start in ("#", *self._definitions):
            seen: set[str] = set()
            open_ = [start]
            while open_:
                at = open_.pop()
                for target in _direct(root if at == "#" else self._definitions[at]):
                    if target == start:
                        raise self._wrong("", f"'$ref': '{start[:100]}' leads to itself without a value between")
                    if target not in seen:
                        seen.add(target)
                        open_.append(target)

    def _ways(self, schema: dict[str, Any], known: dict[str, int]) -> int:
        """How many schemas with a value of their own this one may stand for. There are no cycles any more."""
        total = 0
        for target in _direct(schema):
            if target not in known:
                known[target] = 1 if target == "#" else self._ways(self._definitions[target], known)
            total += known[target]
        return max(1, total)

    # ---- types ----

    def _types(self, kind: Any, place: str) -> list[str]:
        kinds = kind if isinstance(kind, list) else [kind]
        wrong = next((one for one in kinds if not isinstance(one, str) or one not in _OF_TYPE), None)
        if not kinds or wrong is not None:
            raise self._wrong(place, f"'type' must be one of {', '.join(_OF_TYPE)}, or a list of them")
        return list(dict.fromkeys(kinds))

    def _typed(self, schema: dict[str, Any], place: str) -> dict[str, Any]:
        if "type" in schema:
            kinds = self._types(schema["type"], place)
        elif schema:  # keywords of a type: what isn't of that type would also do, but it isn't what is meant
            kinds = [next(kind for kind, names in _OF_TYPE.items() if any(name in schema for name in names))]
            kinds = ["number"] if kinds == ["integer"] else kinds
        else:
            return {}
        parts = [self._of_type(kind, schema, place) for kind in kinds]
        return parts[0] if len(parts) == 1 else {"anyOf": parts}

    def _of_type(self, kind: str, schema: dict[str, Any], place: str) -> dict[str, Any]:
        own = {name: schema[name] for name in _OF_TYPE[kind] if name in schema}
        if kind == "object":
            return {"type": kind, **self._object(own, place)}
        if kind == "array":
            return {"type": kind, **self._array(own, place)}
        if kind == "string":
            self._check_string(own, place)
        elif own:
            self._check_bounds(own, kind, place)
        return {"type": kind, **own}

    def _object(self, own: dict[str, Any], place: str) -> dict[str, Any]:
        given = self._mapping(own.get("properties", {}), f"{place}.properties".lstrip("."))
        properties = {name: self._schema(inner, f"{place}.properties.{name[:60]}".lstrip(".")) for name, inner in given.items()}
        required = own.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise self._wrong(place, "'required' must be a list of names")
        missing = next((name for name in required if name not in properties), None)
        if missing is not None:
            raise self._wrong(place, f"'required' names '{missing[:60]}', which is not in 'properties'")
        others = own.get("additionalProperties", True)
        inner = False if others is False else self._schema(others, f"{place}.additionalProperties".lstrip("."))
        if properties or inner is False:
            return {"properties": properties, "required": list(dict.fromkeys(required)), "additionalProperties": False}
        return {"additionalProperties": inner} if inner else {}

    def _array(self, own: dict[str, Any], place: str) -> dict[str, Any]:
        least, most = self._counts(own, "minItems", "maxItems", place)
        if "prefixItems" in own:
            given = own["prefixItems"]
            if not isinstance(given, list) or not given:
                raise self._wrong(place, "'prefixItems' must be a list of schemas")
            if least > len(given) or (most is not None and most < len(given)):
                raise self._wrong(place, "'prefixItems' of another length than 'minItems' and 'maxItems' allow is not supported")
            items = [self._schema(part, f"{place}.prefixItems[{i}]".lstrip(".")) for i, part in enumerate(given)]
            return {"prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}
        found: dict[str, Any] = {"items": self._schema(own.get("items", True), f"{place}.items".lstrip("."))}
        return found | ({"minItems": least} if least else {}) | ({"maxItems": most} if most is not None else {})

    def _check_string(self, own: dict[str, Any], place: str) -> None:
        self._counts(own, "minLength", "maxLength", place)
        if "format" in own and own["format"] not in PATTERNS:
            raise self._wrong(place, f"'format' must be one of {', '.join(PATTERNS)}")
        if "pattern" in own and not isinstance(own["pattern"], str):
            raise self._wrong(place, "'pattern' must be a text")
        if "format" in own and len(own) > 1:
            raise self._wrong(place, "other keywords beside 'format' are not supported")

    def _check_bounds(self, own: dict[str, Any], kind: str, place: str) -> None:
        for name, value in own.items():
            if not _is(value, "number") or (kind == "integer" and not _is(value, "integer")):
                raise self._wrong(place, f"'{name}' must be {'an integer' if kind == 'integer' else 'a number'}")
            if abs(value) >= 10**15:
                raise self._wrong(place, f"'{name}' must be below 10^15")

    def _counts(self, own: dict[str, Any], least: str, most: str, place: str) -> tuple[int, int | None]:
        for name in (least, most):
            value = own.get(name, 0)
            if not _is(value, "integer") or not 0 <= value <= MAX_SCHEMA_COUNT:
                raise self._wrong(place, f"'{name}' must be an integer from 0 to {MAX_SCHEMA_COUNT}")
        low, high = own.get(least, 0), own.get(most)
        if high is not None and high < low:
            raise self._wrong(place, f"'{most}' is below '{least}'")
        return low, high

    def _mapping(self, value: Any, place: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(place, "must be an object")
        return value


def _is(value: Any, kind: str) -> bool:
    """Whether a JSON value is of that type."""
    return isinstance(value, _PYTHON[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _direct(schema: dict[str, Any]) -> list[str]:
    """What a schema may stand for without a value of its own."""
    if "$ref" in schema:
        return [schema["$ref"]]
    return [target for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())) for target in _direct(part)]
