"""The page of the HTTP API, from a small OpenAPI document and from ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import pytest

from xi_server import openapi

REF = "#/components/schemas/"


@cache
def ours() -> dict[str, Any]:
    return openapi.document()


@pytest.fixture
def page(generator: Callable[[str], ModuleType]) -> str:
    text: str = generator("http_page").http(ours())
    return text


def section(page: str, title: str) -> str:
    return page.split(f"\n## `{title}`\n")[1].split("\n## ")[0]


def named(page: str, name: str) -> str:
    return page.split(f"\n### `{name}`\n")[1].split("\n### ")[0].split("\n## ")[0]


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"enum": ["{}"]}, '`"{}"`'),
        ({"enum": ["auto", "none", None]}, "`auto` or `none` or `null`"),
        ({}, "any"),
        ({"type": ["string", "number", "null"]}, "string or number or null"),
        ({"type": "integer", "minimum": 1, "maximum": 16}, "integer (≥ 1, ≤ 16)"),
        ({"type": "string", "minLength": 1, "maxLength": 64}, "string (≥ 1, ≤ 64 characters)"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 9}, "array of string (≤ 9 items)"),
        (
            {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer", "minimum": 0}}]}},
            "array of (string or array of integer (≥ 0))",
        ),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "object of string"),
        ({"type": "array", "items": {"$ref": REF + "Tool"}}, "array of [Tool](#tool)"),
        ({"type": "string", "pattern": "^a|b$"}, "string matching `^a\\|b$`"),
    ],
)
def test_types(generator: Callable[[str], ModuleType], schema: dict[str, Any], text: str) -> None:
    assert generator("http_page").type_text(schema) == text


def test_parameters_of_path_and_query(page: str) -> None:
    logs = section(page, "GET /v1/models/{uid}/logs")
    assert "| `uid` | path | string | required |" in logs
    assert "| `replica` | query | integer (≥ 0) |  |" in logs
    assert "| `start` | query | integer | `-65536` |" in logs
    for path, methods in ours()["paths"].items():
        for method, operation in methods.items():
            for one in operation.get("parameters", []):
                assert f"| `{one['name']}` | {one['in']} |" in section(page, f"{method.upper()} {path}")


def test_fields_answers_and_statuses(page: str) -> None:
    chat = section(page, "POST /v1/chat/completions")
    assert "| `temperature` | number (≥ 0, ≤ 2) |" in chat
    assert "| 200 | [ChatCompletion](#chatcompletion); with `stream: true`: server-sent events" in chat
    for path, methods in ours()["paths"].items():
        for method, operation in methods.items():
            for status in operation["responses"]:
                assert f"\n| {status} |" in section(page, f"{method.upper()} {path}")


def test_every_field_and_parameter_has_a_meaning(page: str) -> None:
    for name, schema in ours()["components"]["schemas"].items():
        if name not in ("Envelope", "PublicError"):  # OpenAI's
            rows = [line for line in named(page, name).splitlines() if line.startswith("| `")]
            assert len(rows) >= len(schema["properties"])
            assert [row for row in rows if row.endswith("|  |")] == [], name
    assert "| `start` | query | integer | `-65536` | The byte to begin at" in page


def test_an_answer_of_another_kind_than_json_or_an_error(page: str) -> None:
    assert "| 200 | text |" in section(page, "GET /metrics")
    assert "| 503 | It isn't ready: [Readiness](#readiness) |" in section(page, "GET /ready")


def test_every_named_type_is_there_once_and_every_link_leads_to_one(page: str) -> None:
    for name in ours()["components"]["schemas"]:
        assert page.count(f"\n### `{name}`\n") == 1, name
        assert f"](#{name.lower()})" in page or name in page.split("## Types")[0], name
    targets = {line.strip("#` ").lower() for line in page.splitlines() if line.startswith("#")}
    assert {part.split(")")[0] for part in page.split("](#")[1:]} <= targets


def test_meanings_come_from_the_structs(page: str) -> None:
    spec = named(page, "LaunchSpec")
    assert "| `n_worker` | integer (≥ 1, ≤ 1024) | `1` | Workers that share each replica." in spec
    assert "| `envs` | object of string | `{}` | Other name of env |" in spec
    assert "| any other | any |  | An option of the engine |" in spec


def test_null_and_empty_objects_are_no_types(page: str) -> None:
    assert "| `worker_ip` | only null |  | For Xinference's client:" in page
    assert "| `prompt` | string or array of (integer (≥ 0, ≤ 2147483647) or string or array of integer (≥ 0" in page
    assert '| `kwargs` | `"{}"` |  | What xinference-client always sends' in page


def test_null_is_named_where_it_may_come(page: str) -> None:
    assert "| `token_logprobs` | array of (number or null) | required |" in named(page, "CompletionLogprobs")
    assert "| `user` | string |  |" in named(page, "ChatRequest")
    assert "| `n_gpu` | integer or `auto` or null | `auto` |" in named(page, "LaunchSpec")


def test_routes_without_a_key_say_so(page: str) -> None:
    assert "Needs no API key." in section(page, "GET /health")
    assert "Needs no API key." not in section(page, "GET /v1/workers")
