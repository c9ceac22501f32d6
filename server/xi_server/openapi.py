"""The OpenAPI document: FastAPI's own, completed with the token path and with schemas made from the msgspec structs.

Imported when asked for.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from xi_core.api.control import (
    CachedModelList,
    CacheRemoval,
    ClusterInfo,
    DrainOrder,
    EngineStatus,
    EnvironmentStatus,
    JoinTokenAnswer,
    JoinTokenOrder,
    LaunchAnswer,
    LaunchSpec,
    LogPart,
    ModelStatus,
    PlacementReport,
    RegisterAnswer,
    RegisterOrder,
    Registration,
    ReplicaCount,
    ReplicaStatus,
    WorkerStatus,
)
from xi_core.api.embeddings import EmbeddingList, EmbeddingRequest, RerankAnswer, RerankRequest
from xi_core.api.members import KeyRotation, MemberRemoval, MemberStatus
from xi_core.api.openai import ChatCompletion, ChatRequest, Completion, CompletionRequest, ModelList
from xi_core.api.pulls import PullOrder, PullStatus
from xi_core.api.sleep import SleepAnswer, SleepOrder
from xi_core.errors import Envelope

Document = dict[str, Any]

TOKEN_ROUTES: dict[str, tuple[str, Any, Any]] = {
    "/v1/chat/completions": ("Chat: the model's next message", ChatRequest, ChatCompletion),
    "/v1/completions": ("Completions of one or several prompts, 128 choices at most", CompletionRequest, Completion),
    "/v1/embeddings": ("Vectors of texts", EmbeddingRequest, EmbeddingList),
    "/v1/rerank": ("Documents in the order of their relevance to a query", RerankRequest, RerankAnswer),
}
STREAMED = ("/v1/chat/completions", "/v1/completions")
ANSWERS: dict[tuple[str, str], Any] = {
    ("/v1/models", "get"): ModelList,
    ("/v1/models", "post"): LaunchAnswer,
    ("/v1/models/{uid}", "get"): ModelStatus,
    ("/v1/models/{uid}/replicas", "get"): list[ReplicaStatus],
    ("/v1/models/{uid}/logs", "get"): LogPart,
    ("/v1/models/{uid}/sleep", "post"): SleepAnswer,
    ("/v1/models/{uid}/wake", "post"): SleepAnswer,
    ("/v1/engines", "get"): list[EngineStatus],
    ("/v1/model_registrations", "get"): list[Registration],
    ("/v1/model_registrations/{model_type}", "get"): list[Registration],
    ("/v1/model_registrations/{model_type}", "post"): RegisterAnswer,
    ("/v1/model_registrations/{model_type}/{model_name}", "get"): Registration,
    ("/v1/workers", "get"): list[WorkerStatus],
    ("/v1/placements", "post"): list[PlacementReport],
    ("/v1/virtualenvs", "get"): list[EnvironmentStatus],
    ("/v1/cache/models", "get"): CachedModelList,
    ("/v1/cache/models", "delete"): CacheRemoval,
    ("/v1/cache/models", "post"): PullStatus,
    ("/v1/cache/pulls/{pull_id}", "get"): PullStatus,
    ("/v1/cache/pulls/{pull_id}", "delete"): PullStatus,
    ("/v1/cluster/info", "get"): ClusterInfo,
    ("/v1/cluster/join-tokens", "post"): JoinTokenAnswer,
    ("/v1/cluster/members", "get"): list[MemberStatus],
    ("/v1/cluster/members/{name}", "delete"): MemberRemoval,
    ("/v1/cluster/gateway-keys", "post"): KeyRotation,
}
BODIES: dict[tuple[str, str], Any] = {
    ("/v1/models", "post"): LaunchSpec,
    ("/v1/placements", "post"): LaunchSpec,
    ("/v1/model_registrations/{model_type}", "post"): RegisterOrder,
    ("/v1/models/{uid}/replicas", "put"): ReplicaCount,
    ("/v1/models/{uid}/sleep", "post"): SleepOrder,
    ("/v1/workers/{worker}/drain", "post"): DrainOrder,
    ("/v1/cluster/join-tokens", "post"): JoinTokenOrder,
    ("/v1/cache/models", "post"): PullOrder,
}
STATUSES = {
    "400": "The request is wrong; `param` names the field",
    "401": "No API key, or a wrong one",
    "404": "No such model",
    "409": "The uid is taken by another launch",
    "413": "The body is too large",
    "429": "Too many requests wait; see Retry-After",
    "500": "The engine or the server failed",
    "502": "The replica was lost",
    "503": "Nothing can serve it now; see Retry-After",
    "504": "It took too long",
}
ERRORS_OF = {
    "token": ("400", "401", "404", "413", "429", "500", "502", "503", "504"),
    "launch": ("400", "401", "409", "413", "500", "503"),
    "model": ("401", "404", "503"),
    "control": ("400", "401", "503"),
}
PUBLIC = ("/health", "/ready", "/v1/cluster/auth")


def completed(document: Document) -> Document:
    """`document` with the token path, bodies, answers, errors and the key."""
    types = [Envelope, *BODIES.values(), *ANSWERS.values(), *(t for _, request, answer in TOKEN_ROUTES.values() for t in (request, answer))]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip(map(str, types), schemas, strict=True))
    parts = document.setdefault("components", {})
    parts["schemas"] = {name: _launch_fields(name, schema) for name, schema in components.items()}
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(path, method, operation, refs)
    for path, (summary, request, answer) in TOKEN_ROUTES.items():
        document["paths"][path] = {"post": _token_operation(summary, refs[str(request)], refs[str(answer)], refs, path in STREAMED)}
    return document


def _complete(path: str, method: str, operation: Document, refs: dict[str, Document]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own; ours is 400
    answer = ANSWERS.get((path, method))
    if answer is not None:
        responses["200"] = _json(refs[str(answer)], "As asked")
    if path in PUBLIC:
        return
    operation["security"] = [{"key": []}]
    body = BODIES.get((path, method))
    if body is not None:
        operation["requestBody"] = {
            "required": body not in (DrainOrder, JoinTokenOrder, SleepOrder),
            "content": {"application/json": {"schema": refs[str(body)]}},
        }
    named = any(part in path for part in ("{uid}", "{worker}", "{pull_id}"))
    kind = "launch" if body in (LaunchSpec, PullOrder) else "model" if named else "control"
    responses.update(_errors(kind, refs))


def _token_operation(summary: str, request: Document, answer: Document, refs: dict[str, Document], streams: bool) -> Document:
    events = {"schema": {"type": "string", "description": "With `stream: true`: server-sent events, the last one `data: [DONE]`."}}
    response = _json(answer, "The answer, whole or streamed" if streams else "The answer")
    if streams:
        response["content"]["text/event-stream"] = events
    return {
        "tags": ["inference"],
        "summary": summary,
        "security": [{"key": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": response, **_errors("token", refs)},
    }


def _errors(kind: str, refs: dict[str, Document]) -> Document:
    return {status: _json(refs[str(Envelope)], STATUSES[status]) for status in ERRORS_OF[kind]}


def _json(schema: Document, description: str) -> Document:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _launch_fields(name: str, schema: Document) -> Document:
    """`LaunchSpec` as a body: other fields are the engine's options, and some have a second name."""
    if name != "LaunchSpec":
        return schema
    fields = schema["properties"]
    extra = {
        "model_size_in_billions": {"description": "size_in_billions as 7, 0.5 or 0_5", "type": ["string", "number", "null"]},
        "envs": {**fields["env"], "description": "Other name of env"},
        "peft_model_config": {"description": "Xinference's form of lora_modules", "type": ["object", "null"]},
    }  # fmt: skip
    return {**schema, "properties": {**fields, **extra}, "additionalProperties": {"description": "An option of the engine"}}


def document() -> Document:
    """The whole OpenAPI document, without a server."""
    from xi_core.config import Settings
    from xi_core.plugins import PluginHub
    from xi_server.app import control_app
    from xi_server.gateway import Gateway

    async def make() -> Document:  # a gateway wants a loop
        return control_app(Gateway(Settings(), PluginHub.load(), "inproc://nowhere")).openapi()

    return asyncio.run(make())
