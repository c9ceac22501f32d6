"""`/v1/models`: launch, list, look at and end models. The inference itself is the dispatcher's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from xi_core.api.body import decode_body
from xi_core.api.control import LaunchAnswer, LogPart, ModelRemoval, ModelStatus, ReplicaCount, ScaleAnswer
from xi_core.api.openai import Model, ModelList
from xi_core.cluster.messages import GetModel, Launch, Launched, ListModels, Models, ReadLog, Scale, Terminate
from xi_core.errors import LaunchCancelled, ModelNotFound, Unavailable
from xi_server.asgi import read_body
from xi_server.gateway import Gateway
from xi_server.routes.answers import gateway_of, json_response
from xi_server.routes.launching import launch_spec

router = APIRouter(prefix="/v1/models", tags=["models"])

_replica_count = msgspec.json.Decoder(ReplicaCount).decode

OfReplica = Annotated[int | None, Query(ge=0, description="The replica's number, from 0; default: the first that there is")]
OfRank = Annotated[int, Query(ge=0, description="The rank of a replica that is sharded over several workers, from 0")]
From = Annotated[int, Query(description="The byte to begin at; below 0: so many before the end")]
Previous = Annotated[bool, Query(description="The log before this one")]
WaitReady = Annotated[bool, Query(description="Answer when the model is ready, or has failed; false: as soon as the launch is accepted")]

POLL = 0.5
"""Seconds between looks at a launch where the routing table says nothing new."""
ENDED = ("FAILED", "CANCELLED", "STOPPING")
"""States of launches that serve no more."""
SETTLE = 2.0
"""Seconds for the routing table to follow what the supervisor has answered already."""


@router.get("")
async def list_models(request: Request) -> Response:
    """All launches and their LoRA modules, in OpenAI's form with xi's fields beside it.

    While the supervisor is away: those of the last routing table.
    """
    gateway = gateway_of(request)
    try:
        answer: Models = await gateway.supervisor.call(ListModels())
    except Unavailable:
        return json_response(ModelList(data=_from_table(gateway)))
    return json_response(ModelList(data=[card for status in answer.models for card in _cards(_entry(gateway, status), _adapters(status))]))


@router.post("")
async def launch_model(request: Request, wait_ready: WaitReady = True) -> Response:
    """Launch a model. Answers with its uid when it is ready, or with `wait_ready=false` as soon as it is accepted.

    The same launch again is the same launch. Where that was ready, and a part of it serves while the rest waits for a worker or for room,
    or ends again and again, the answer comes at once; the launch's status says so.
    """
    gateway = gateway_of(request)
    body = await read_body(request.scope, request.receive, gateway.settings.max_body)
    answer: Launched = await gateway.supervisor.call(Launch(launch_spec(body)))
    if wait_ready:
        await _wait_ready(gateway, answer.uid, request.is_disconnected)
    return json_response(LaunchAnswer(model_uid=answer.uid, existed=answer.existed))


@router.get("/{uid}")
async def get_model(request: Request, uid: str) -> Response:
    """One launch: its spec, state and replicas, and what OpenAI's and Xinference's clients read of a model.

    A LoRA module's name gives the launch that serves it, with the module's name as `id` and the uid as `parent`.
    """
    gateway = gateway_of(request)
    owner = None if uid in gateway.table.models else gateway.table.owners.get(uid)
    status: ModelStatus = await gateway.supervisor.call(GetModel(owner or uid))
    entry = _entry(gateway, status)
    return json_response(_described(_card(entry, uid) if owner else entry, status))


@router.get("/{uid}/replicas")
async def list_replicas(request: Request, uid: str) -> Response:
    """The replicas of a launch."""
    status: ModelStatus = await gateway_of(request).supervisor.call(GetModel(uid))
    return json_response(status.replicas)


@router.put("/{uid}/replicas")
async def scale_model(request: Request, uid: str) -> Response:
    """Have so many replicas of a launch, while it serves. Answers when it is accepted; those that go finish what they run."""
    gateway = gateway_of(request)
    body = await read_body(request.scope, request.receive, gateway.settings.max_body)
    count = decode_body(_replica_count, body)
    await gateway.supervisor.call(Scale(uid, count.replica))
    return json_response(ScaleAnswer(model_uid=uid, replica=count.replica))


@router.get("/{uid}/logs")
async def read_log(
    request: Request, uid: str, replica: OfReplica = None, rank: OfRank = 0, start: From = -65536, previous: Previous = False
) -> Response:
    """A part of a replica's log, from byte `start` on (below 0: so many before the end); `next` is where to go on.

    With `previous`: of the log before, which is that of the replica's life before, or of what this one wrote until its log grew too large.
    """
    command = ReadLog(uid=uid, replica=replica, rank=rank, start=start, previous=previous)
    part: LogPart = await gateway_of(request).supervisor.call(command)
    return json_response(part)


@router.delete("/{uid}")
async def terminate_model(request: Request, uid: str) -> Response:
    """End a launch, whatever state it is in. Answers when its replicas are gone."""
    gateway = gateway_of(request)
    await gateway.supervisor.call(Terminate(uid), timeout=gateway.settings.grace + 30.0)
    await settled(gateway, lambda: _has_ended(gateway, uid))
    return json_response(ModelRemoval(id=uid))


def _has_ended(gateway: Gateway, uid: str) -> bool:
    """Whether the routing table knows that this launch is gone. One that was never ready stays in it for a while, as CANCELLED."""
    model = gateway.table.models.get(uid)
    return model is None or model.route.state == "CANCELLED"


async def _wait_ready(gateway: Gateway, uid: str, left: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the launch is READY, or stuck with a part that serves. A client that leaves ends only its own wait.

    Raises `LaunchFailed`, `LaunchCancelled`, and `Unavailable` where nothing of it serves and that may stay so.
    """
    loop = asyncio.get_running_loop()
    moved = loop.time()
    deadline = loop.time() + gateway.settings.launch_timeout + 30.0  # the supervisor's own deadline comes first
    while loop.time() < deadline and not gateway.stopping:
        status = await _status(gateway, uid)
        moved = moved if status is not None and status.stuck else loop.time()
        if status is not None and status.is_settled(loop.time() - moved):
            await settled(gateway, lambda: uid in gateway.table.models and bool(gateway.table.models[uid].usable()))
            return
        if await left():
            return
        await gateway.table.change(POLL)
    why = "the server is being stopped" if gateway.stopping else "the supervisor doesn't say how it ended"
    raise Unavailable(f"no more waiting for model '{uid}': {why}", retry_after=5.0)


async def _status(gateway: Gateway, uid: str) -> ModelStatus | None:
    """None while the supervisor doesn't say."""
    try:
        status: ModelStatus = await gateway.supervisor.call(GetModel(uid))
    except Unavailable:
        return None
    except ModelNotFound:
        raise LaunchCancelled(f"model '{uid}' was terminated before it was ready") from None
    return status


async def settled(gateway: Gateway, reached: Callable[[], bool]) -> None:
    """Wait until the routing table has followed, `SETTLE` seconds at most: so that the caller's next request finds what it was told."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SETTLE):
            while not reached():
                await gateway.table.change(SETTLE)


def _from_table(gateway: Gateway) -> list[Model]:
    cards = []
    for uid, model in gateway.table.models.items():
        route = model.route
        entry = Model(
            id=uid, root=uid, created=0, state=route.state, context_length=route.context_length,
            endpoints=route.endpoints, replica=len(model.links), ready_replicas=len(model.usable()), detail=route.detail,
        )  # fmt: skip
        cards += _cards(entry, route.adapters)
    return cards


def _cards(entry: Model, adapters: list[str]) -> list[Model]:
    """A launch's own card, and one for each of its LoRA modules."""
    return [entry, *(_card(entry, name) for name in adapters)]


def _card(entry: Model, adapter: str) -> Model:
    return msgspec.structs.replace(entry, id=adapter, parent=entry.id)


def _adapters(status: ModelStatus) -> list[str]:
    """The names that can be asked for: those of a launch that has ended are free again."""
    return [] if status.state in ENDED else sorted(status.spec.lora_modules)


def _entry(gateway: Gateway, status: ModelStatus) -> Model:
    served = gateway.table.models.get(status.model_uid)
    return Model(
        id=status.model_uid,
        root=status.model_uid,
        created=status.created,
        model_name=status.spec.model_name,
        model_type=status.spec.model_type,
        model_engine=status.engine,
        model_format=status.model_format,
        size_in_billions=status.size_in_billions,
        quantization=status.quantization,
        context_length=status.context_length,
        replica=status.spec.replica,
        ready_replicas=status.ready_replicas,
        asleep_replicas=status.asleep_replicas,
        restarts=sum(replica.restarts for replica in status.replicas),
        state=status.state,
        detail=status.hindrance(),
        endpoints=served.route.endpoints if served is not None else [],
    )


def _described(entry: Model, status: ModelStatus) -> dict[str, Any]:
    plain: dict[str, Any] = {**msgspec.to_builtins(entry), **msgspec.to_builtins(status)}
    plain["model_ability"] = _abilities(entry.endpoints)
    plain["model_size_in_billions"] = status.size_in_billions
    return plain


def _abilities(endpoints: list[str]) -> list[str]:
    """What Xinference's clients choose their kind of model by."""
    pools = [ability for route, ability in (("/v1/embeddings", "embed"), ("/v1/rerank", "rerank")) if route in endpoints]
    if pools:
        return pools
    chats = not endpoints or "/v1/chat/completions" in endpoints
    return ["chat", "generate"] if chats else ["generate"]
