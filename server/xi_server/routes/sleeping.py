"""`/v1/models/{uid}/sleep` and `/wake`: give back the memory of a model's devices, and take it again."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from xi_core.api.body import decode_body
from xi_core.api.sleep import SleepAnswer, SleepOrder
from xi_core.cluster.messages import Sleep
from xi_server.asgi import read_body
from xi_server.gateway import Gateway
from xi_server.routes.answers import gateway_of, json_response
from xi_server.routes.models import settled

router = APIRouter(prefix="/v1/models", tags=["models"])

_order = msgspec.json.Decoder(SleepOrder).decode


@router.post("/{uid}/sleep")
async def sleep_model(request: Request, uid: str) -> Response:
    """Have all replicas of a launch sleep. They refuse new requests and finish those that run; answers when their memory is free."""
    gateway = gateway_of(request)
    body = await read_body(request.scope, request.receive, gateway.settings.max_body)
    order = decode_body(_order, body) if body else SleepOrder()
    return await _ask(gateway, uid, order.level)


@router.post("/{uid}/wake")
async def wake_model(request: Request, uid: str) -> Response:
    """Have all replicas of a launch serve again. Answers when they do."""
    return await _ask(gateway_of(request), uid, 0)


async def _ask(gateway: Gateway, uid: str, level: int) -> Response:
    await gateway.supervisor.call(Sleep(uid, level), timeout=None)
    await settled(gateway, lambda: uid in gateway.table.models and bool(gateway.table.models[uid].usable()) is not bool(level))
    return json_response(SleepAnswer(model_uid=uid, level=level))
