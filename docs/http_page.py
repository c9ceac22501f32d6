"""The page of the HTTP API, for `reference.py`: routes with their parameters, bodies and answers, then every other type that they name."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from page_texts import cell, code, field_texts, table

import xi_core.api
from xi_core import errors

Schema = dict[str, Any]

HEAD = """# HTTP API

Made from the gateway's OpenAPI document: `/openapi.json` of a running server, shown at `/docs`.

Where the server has an API key, requests send it as `Authorization: Bearer KEY`. A request that fails is answered with an
[Envelope](#envelope), whose codes are on the page of [errors](errors.md); but for those of the inference routes it has the message once
more as `detail`. A field or parameter that isn't required may be left out; a field that has no default either may be null too.
"""
TYPES = """## Types

Those of bodies stand where they are first sent. In answers, what is required is always there.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
LENGTHS = {"minLength": "≥", "minItems": "≥", "minProperties": "≥", "maxLength": "≤", "maxItems": "≤", "maxProperties": "≤"}
UNITS = {"string": "characters", "array": "items", "object": "entries"}
NULL = {"type": "null"}
ENVELOPE = "[Envelope](#envelope)"
"""What errors are, but where another type is told."""


def http(document: Schema) -> str:
    """Every route and every named type of `document`."""
    types = dict(document["components"]["schemas"])
    parts = [HEAD]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"## `{method.upper()} {path}`\n\n{operation.get('description') or operation.get('summary', '')}\n")
            parts.extend(_operation(operation, types))
    parts.append(TYPES)
    parts.extend(_named(name, schema) for name, schema in sorted(types.items()))
    return "\n".join(parts)


def _operation(operation: Schema, types: Schema) -> Iterator[str]:
    """A route's parameters, answers and body. The body's type is taken out of `types` where it is shown."""
    if "security" not in operation:
        yield "Needs no API key.\n"
    if operation.get("parameters"):
        yield table(["parameter", "in", "type", "default", "meaning"], map(_parameter, operation["parameters"]))
    yield table(["status", "answer"], [[status, _answer(status, one)] for status, one in operation["responses"].items()])
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        yield f"Body{'' if operation['requestBody'].get('required') else ', which may be left out'}: {type_text(schema)}\n"
        name = str(schema["$ref"]).rpartition("/")[2]
        if name in types:
            yield _named(name, types.pop(name))


def _parameter(one: Schema) -> list[str]:
    return [code(one["name"]), one["in"], *_type_and_default(one["schema"], one["required"]), cell(one.get("description", ""))]


def _answer(status: str, response: Schema) -> str:
    kinds = {kind: one["schema"] for kind, one in response["content"].items()}
    if not status.startswith("2"):
        text, other = cell(response["description"]), type_text(kinds["application/json"])
        return text if other == ENVELOPE else f"{text}: {other}"
    whole = type_text(kinds["application/json"]) if "application/json" in kinds else "text"
    streamed = kinds.get("text/event-stream", {}).get("description", "")
    return f"{whole}; {streamed[0].lower()}{streamed[1:]}" if streamed else whole


def _named(name: str, schema: Schema) -> str:
    texts, required = _texts(name), schema.get("required", [])
    rows = [
        [code(field), *_type_and_default(one, field in required), cell(one.get("description") or texts.get(field, ""))]
        for field, one in schema["properties"].items()
    ]
    if schema.get("additionalProperties"):
        others = schema["additionalProperties"]
        rows.append(["any other", type_text(others), "", cell(others.get("description", ""))])
    text = inspect.cleandoc(schema.get("description", ""))
    return f"### `{name}`\n\n{text}\n\n" + table(["field", "type", "default", "meaning"], rows)


def _type_and_default(schema: Schema, required: bool) -> tuple[str, str]:
    """Two cells. That an optional value may be null goes without saying."""
    if required:
        return type_text(schema), "required"
    default = schema.get("default")
    if default is not None:
        return type_text(schema), code(_literal(default))
    kinds = [one for one in schema.get("anyOf", ()) if one != NULL]
    return type_text({**schema, "anyOf": kinds} if kinds else schema), ""


def type_text(field: Schema) -> str:
    """A schema in words; named types as links."""
    if "anyOf" in field:
        return " or ".join(type_text(one) for one in field["anyOf"])
    if "$ref" in field:
        name = str(field["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in field:
        return " or ".join(code(_literal(value)) for value in field["enum"])
    if field.get("type") == "null" and "default" in field:
        return "only null"
    kind = field.get("type", "any")
    if isinstance(kind, list):
        return " or ".join(kind)
    inner = field.get("items" if kind == "array" else "additionalProperties")
    of = f" of {_in_brackets(inner)}" if inner else ""
    matching = f" matching {code(field['pattern'])}" if "pattern" in field else ""
    return f"{kind}{of}{_limits(kind, field)}{matching}"


def _in_brackets(field: Schema) -> str:
    """`type_text`, in brackets where it is one of several."""
    several = len(field.get("anyOf", ())) > 1 or len(field.get("enum", ())) > 1
    return f"({type_text(field)})" if several else type_text(field)


def _limits(kind: str, field: Schema) -> str:
    limits = [f"{sign} {_number(field[key])}" for key, sign in BOUNDS.items() if key in field]
    lengths = [f"{sign} {field[key]}" for key, sign in LENGTHS.items() if key in field]
    if lengths:
        lengths[-1] += f" {UNITS[kind]}"
    return f" ({', '.join(limits + lengths)})" if limits or lengths else ""


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _literal(value: Any) -> str:
    """A value as JSON, but for the quotes of plain words."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) else json.dumps(value)


@cache
def _structs() -> dict[str, type[msgspec.Struct]]:
    """The structs that the API's types are made from, by name."""
    modules = [importlib.import_module(f"xi_core.api.{found.name}") for found in pkgutil.iter_modules(xi_core.api.__path__)]
    return {
        name: cls
        for module in (*modules, errors)
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, msgspec.Struct) and cls is not msgspec.Struct
    }


def _texts(name: str) -> dict[str, str]:
    """What stands under each field of this type, by the field's name in JSON."""
    cls = _structs()[name]
    texts = field_texts(cls)
    return {field.encode_name: texts[field.name] for field in msgspec.structs.fields(cls) if field.name in texts}
