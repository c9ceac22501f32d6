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
    DrainAnswer,
    DrainOrder,
    EngineModels,
    EngineStatus,
    EnvironmentRemoval,
    EnvironmentStatus,
    Health,
    JoinTokenAnswer,
    JoinTokenOrder,
    KeyNeed,
    LaunchAnswer,
    LaunchSpec,
    LogPart,
    ModelRemoval,
    ModelStatus,
    PlacementReport,
    Readiness,
    RegisterAnswer,
    RegisterOrder,
    Registration,
    RegistrationRemoval,
    ReplicaCount,
    ReplicaStatus,
    ScaleAnswer,
    StopAnswer,
    VllmModels,
    WorkerStatus,
)
from xi_core.api.embeddings import EmbeddingList, EmbeddingRequest, RerankAnswer, RerankRequest
from xi_core.api.members import KeyRotation, MemberRemoval, MemberStatus
from xi_core.api.openai import ChatCompletion, ChatRequest, Completion, CompletionRequest, ModelList
from xi_core.api.pulls import PullOrder, PullStatus
from xi_core.api.sleep import SleepAnswer, SleepOrder
from xi_core.errors import Envelope
from xi_server.auth import EXEMPT
from xi_server.openapi_statuses import errors_of

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
    ("/v1/models/vllm-supported", "get"): VllmModels,
    ("/v1/models/{uid}", "get"): ModelStatus,
    ("/v1/models/{uid}", "delete"): ModelRemoval,
    ("/v1/models/{uid}/replicas", "get"): list[ReplicaStatus],
    ("/v1/models/{uid}/replicas", "put"): ScaleAnswer,
    ("/v1/models/{uid}/logs", "get"): LogPart,
    ("/v1/models/{uid}/sleep", "post"): SleepAnswer,
    ("/v1/models/{uid}/wake", "post"): SleepAnswer,
    ("/v1/engines", "get"): list[EngineStatus],
    ("/v1/engines/{model_name}", "get"): dict[str, list[EngineModels] | str],
    ("/v1/engines/{model_type}/{model_name}", "get"): dict[str, list[EngineModels] | str],
    ("/v1/model_registrations", "get"): list[Registration],
    ("/v1/model_registrations/{model_type}", "get"): list[Registration],
    ("/v1/model_registrations/{model_type}", "post"): RegisterAnswer,
    ("/v1/model_registrations/{model_type}/{model_name}", "get"): Registration,
    ("/v1/model_registrations/{model_type}/{model_name}", "delete"): RegistrationRemoval,
    ("/v1/workers", "get"): list[WorkerStatus],
    ("/v1/workers/{worker}/drain", "post"): DrainAnswer,
    ("/v1/placements", "post"): list[PlacementReport],
    ("/v1/virtualenvs", "get"): list[EnvironmentStatus],
    ("/v1/virtualenvs/{name}", "delete"): EnvironmentRemoval,
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
    ("/v1/cluster/stop", "post"): StopAnswer,
    ("/v1/cluster/auth", "get"): KeyNeed,
    ("/health", "get"): Health,
    ("/ready", "get"): Readiness,
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
OPTIONAL = (DrainOrder, JoinTokenOrder, SleepOrder)
"""Bodies that may be left out."""
IN_PATH = {
    "uid": "The launch's uid",
    "worker": "The worker's name, as `/v1/workers` tells it",
    "pull_id": "As the download's beginning was answered",
    "model_type": "What models are for: `LLM`, `embedding` or `rerank`, in any case",
}
NAMED = {
    "/v1/engines": {"model_name": "The model's name; for a hub id or a path ask `/v1/engines?model=`"},
    "/v1/model_registrations": {"model_name": "The model's name, or another name of it"},
    "/v1/virtualenvs": {"name": "The environment's name, as `/v1/virtualenvs` tells it"},
    "/v1/cluster/members": {"name": "The worker's or gateway's name, as `/v1/cluster/members` tells it"},
}
"""What parameters in paths mean: those that mean the same everywhere, and others by how the path begins."""


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
        document["paths"][path] = {"post": _token_operation(summary, refs[str(request)], refs[str(answer)], path in STREAMED)}
        document["paths"][path]["post"]["responses"].update(_errors(path, "post", refs))
    return document


def _complete(path: str, method: str, operation: Document, refs: dict[str, Document]) -> None:
    responses = operation["responses"]
    responses.clear()  # FastAPI knows of 200 and its own 422 only
    if path == "/metrics":
        responses["200"] = {"description": "As asked", "content": {"text/plain": {"schema": {"type": "string"}}}}
    else:
        responses["200"] = _json(refs[str(ANSWERS[path, method])], "As asked")
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["description"] = _meaning(path, parameter["name"])
    if path not in EXEMPT:
        operation["security"] = [{"key": []}]
    body = BODIES.get((path, method))
    if body is not None:
        operation["requestBody"] = {"required": body not in OPTIONAL, "content": {"application/json": {"schema": refs[str(body)]}}}
    responses.update(_errors(path, method, refs))
    if path == "/ready":
        responses["503"] = _json(refs[str(Readiness)], "It isn't ready")


def _meaning(path: str, name: str) -> str:
    return IN_PATH.get(name) or next(names[name] for start, names in NAMED.items() if path.startswith(start))


def _token_operation(summary: str, request: Document, answer: Document, streams: bool) -> Document:
    events = {"schema": {"type": "string", "description": "With `stream: true`: server-sent events, the last one `data: [DONE]`."}}
    response = _json(answer, "The answer, whole or streamed" if streams else "The answer")
    if streams:
        response["content"]["text/event-stream"] = events
    return {
        "tags": ["inference"],
        "summary": summary,
        "security": [{"key": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": response},
    }


def _errors(path: str, method: str, refs: dict[str, Document]) -> Document:
    return {status: _json(refs[str(Envelope)], text) for status, text in errors_of(path, method).items()}


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
