"""The OpenAPI document: every route tells its parameters, its answer and the statuses that it can have."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from xi_server import openapi, openapi_statuses
from xi_server.auth import EXEMPT


@cache
def document() -> dict[str, Any]:
    return openapi.document()


def routes() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def test_every_route_has_a_type_for_each_answer() -> None:
    for path, method, operation in routes():
        for status, answer in operation["responses"].items():
            for kind, content in answer["content"].items():
                assert content["schema"], f"{method} {path}: {status} {kind}"


def test_every_parameter_has_a_text() -> None:
    missing = [
        f"{method} {path}: {one['name']}" for path, method, o in routes() for one in o.get("parameters", []) if not one.get("description")
    ]
    assert missing == []


def test_metrics_are_text() -> None:
    assert list(document()["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


def test_statuses_of_the_layers_around_every_route() -> None:
    for path, method, operation in routes():
        assert "403" in operation["responses"], f"{method} {path}"
        assert ("401" in operation["responses"]) == (path not in EXEMPT), f"{method} {path}"
        if "requestBody" in operation:
            assert {"400", "413"} <= set(operation["responses"]), f"{method} {path}"


def test_ready_is_a_503_with_its_own_answer() -> None:
    ready = document()["paths"]["/ready"]["get"]["responses"]
    assert ready["503"]["content"] == ready["200"]["content"]


def test_a_status_that_a_route_speaks_of_is_declared() -> None:
    spoken = [(path, method, o, s) for path, method, o in routes() for s in openapi_statuses.STATUSES if s in o.get("description", "")]
    assert {(path, method) for path, method, _, _ in spoken} >= {("/v1/cache/models", "delete"), ("/v1/cluster/members/{name}", "delete")}
    assert [f"{method} {path}: {status}" for path, method, o, status in spoken if status not in o["responses"]] == []


def test_errors_and_answers_are_those_of_routes_that_exist() -> None:
    known = {(path, method) for path, method, _ in routes()}
    assert known >= set(openapi_statuses.OWN)
    assert known >= set(openapi.ANSWERS)
    assert known >= set(openapi.BODIES)
    assert {path for path, _ in known} >= set(openapi_statuses.ALONE)
