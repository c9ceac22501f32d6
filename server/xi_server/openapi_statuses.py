"""Which errors each route can answer with, and what each means there: for the OpenAPI document."""

from __future__ import annotations

from xi_server.auth import EXEMPT
from xi_server.dispatch import TOKEN_PATHS

ALONE = ("/health", "/metrics", "/v1/cluster/auth")
"""Answered by the gateway itself. Others ask the supervisor, and are a 503 while it is away; `GET /v1/models` falls back on the table."""

STATUSES = {
    "400": "The request is wrong; `param` names the field",
    "401": "No API key, or a wrong one, where the server has one",
    "403": "From a web page of another site, where the server has no API key",
    "404": "No such model",
    "409": "It clashes with what there is",
    "413": "The body is too large",
    "429": "Too many requests wait; see Retry-After",
    "500": "The engine or the server failed",
    "502": "The replica was lost",
    "503": "Nothing can serve it now; see Retry-After",
    "504": "It took too long",
}
AWAY = "The supervisor, or a worker that is needed, is away or doesn't answer; see Retry-After"
FAULT = "The server failed; its log says why"
NOT_ALLOWED = "The server's operator doesn't allow it; or from a web page of another site, where the server has no API key"
STRANGER = "From another machine, or from a web page of another site, where the server has no API key"
BODY = ("400", "413")

Statuses = dict[str, str]


def _statuses(*given: str, **texts: str) -> Statuses:
    """Statuses with their general texts, and others, as `s409`, with their own."""
    return {status: STATUSES[status] for status in given} | {name.removeprefix("s"): text for name, text in texts.items()}


OWN: dict[tuple[str, str], Statuses] = {
    ("/v1/engines", "get"): _statuses("400"),
    ("/v1/engines/{model_name}", "get"): _statuses("400"),
    ("/v1/engines/{model_type}/{model_name}", "get"): _statuses("400"),
    ("/v1/models/vllm-supported", "get"): _statuses(s400="No plugin offers vLLM"),
    ("/v1/models", "post"): _statuses(
        *BODY,
        s403=NOT_ALLOWED,
        s409="The uid is taken by another launch, or the launch was terminated before it was ready; or there is no place for it",
        s500="A replica could not be brought up, or the server failed",
    ),
    ("/v1/models/{uid}", "get"): _statuses("404"),
    ("/v1/models/{uid}", "delete"): _statuses("404"),
    ("/v1/models/{uid}/replicas", "get"): _statuses("404"),
    ("/v1/models/{uid}/replicas", "put"): _statuses(
        *BODY, "404", s409="The launch has ended, or gives each replica a place of its own; or there is no place for more"
    ),
    ("/v1/models/{uid}/logs", "get"): _statuses("400", "404"),
    ("/v1/models/{uid}/sleep", "post"): _statuses(
        *BODY, "404", "500", s409="The model isn't READY, or sleeps at another level already", s502="A replica ended meanwhile"
    ),
    ("/v1/models/{uid}/wake", "post"): _statuses("404", "500", s409="No replica of it runs", s502="A replica ended meanwhile"),
    ("/v1/model_registrations", "get"): _statuses("400"),
    ("/v1/model_registrations/{model_type}", "get"): _statuses("400"),
    ("/v1/model_registrations/{model_type}", "post"): _statuses(*BODY, s409="A model of this name is registered, or built in"),
    ("/v1/model_registrations/{model_type}/{model_name}", "get"): _statuses("400", s404="No such model is registered"),
    ("/v1/model_registrations/{model_type}/{model_name}", "delete"): _statuses(
        "400", s404="No such model is registered", s409="It is built in"
    ),
    ("/v1/cache/models", "get"): _statuses("400"),
    ("/v1/cache/models", "delete"): _statuses(
        "400", s404="No worker has such a model", s409="A replica uses it, or it is being downloaded"
    ),
    ("/v1/cache/models", "post"): _statuses(
        *BODY, s403=NOT_ALLOWED, s404="No such worker is connected", s409="The workers have as many downloads to do as they take"
    ),
    ("/v1/cache/pulls/{pull_id}", "get"): _statuses(s404="No such download, or it ended long ago"),
    ("/v1/cache/pulls/{pull_id}", "delete"): _statuses(s404="No such download, or it ended long ago"),
    ("/v1/cluster/join-tokens", "post"): _statuses(*BODY, s403=STRANGER),
    ("/v1/cluster/members", "get"): _statuses(s400="This xi takes no other machines"),
    ("/v1/cluster/members/{name}", "delete"): _statuses(
        "400", s403=STRANGER, s404="Nobody of this name is on the list", s409="It runs replicas, and `force` isn't set"
    ),
    ("/v1/cluster/gateway-keys", "post"): _statuses(s400="This xi takes no other machines", s403=STRANGER),
    ("/v1/workers/{worker}/drain", "post"): _statuses(*BODY, s404="No such worker"),
    ("/v1/placements", "post"): _statuses(*BODY, s403=NOT_ALLOWED),
    ("/v1/virtualenvs/{name}", "delete"): _statuses(s404="No worker has such an environment", s409="A replica uses it"),
}
TOKEN = _statuses("400", "404", "413", "429", "500", "502", "503", "504")


def errors_of(path: str, method: str) -> Statuses:
    """The errors of a route, by their status in ascending order: its own, and those of the layers around it."""
    found = {"403": STATUSES["403"], "500": FAULT}
    if path not in EXEMPT:
        found["401"] = STATUSES["401"]
    if path not in ALONE and (path, method) != ("/v1/models", "get"):
        found["503"] = AWAY
    found |= TOKEN if path in TOKEN_PATHS else OWN.get((path, method), {})
    return dict(sorted(found.items()))
