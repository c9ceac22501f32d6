"""`/v1/model_registrations`: the models that can be launched by name; adding one's own, and taking them out again. Xinference's paths."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from xi_core.api.body import decode_body
from xi_core.api.control import MODEL_TYPES, RegisterAnswer, RegisterOrder, Registration, RegistrationRemoval, model_type_of
from xi_core.cluster.messages import Families, GetFamily, ListFamilies, RegisterFamily, UnregisterFamily
from xi_core.errors import InvalidRequest
from xi_server.asgi import read_body
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(prefix="/v1/model_registrations", tags=["registrations"])

OfEngine = Annotated[str | None, Query(description="Only those that this engine knows how to run where it is installed")]
WithSpecs = Annotated[bool, Query(description="Tell all of their specs too")]

_order = msgspec.json.Decoder(RegisterOrder).decode


def known_type(text: str) -> str:
    """A model type in its one form. Raises `InvalidRequest` for one that isn't served."""
    found = model_type_of(text)
    if found is None:
        raise InvalidRequest(f"model_type: {text[:100]!r} is not served; {', '.join(MODEL_TYPES)} are", param="model_type")
    return found


@router.get("")
async def list_all_registrations(request: Request, engine: OfEngine = None, detailed: WithSpecs = False) -> Response:
    """The models of all types that can be launched by name, built-in and registered ones."""
    answer: Families = await gateway_of(request).supervisor.call(ListFamilies(engine=engine, detailed=detailed))
    return json_response(answer.families)


@router.get("/{model_type}")
async def list_registrations(request: Request, model_type: str, engine: OfEngine = None, detailed: WithSpecs = False) -> Response:
    """The models of one type that can be launched by name, built-in and registered ones."""
    command = ListFamilies(model_type=known_type(model_type), engine=engine, detailed=detailed)
    answer: Families = await gateway_of(request).supervisor.call(command)
    return json_response(answer.families)


@router.post("/{model_type}")
async def register_model(request: Request, model_type: str) -> Response:
    """Register a model: `model` is the text of a family file, in xi's form or in Xinference's."""
    gateway = gateway_of(request)
    order = decode_body(_order, await read_body(request.scope, request.receive, gateway.settings.max_body))
    command = RegisterFamily(text=order.model, model_type=known_type(model_type), persist=order.persist)
    answer: RegisterAnswer = await gateway.supervisor.call(command)
    return json_response(answer)


@router.get("/{model_type}/{model_name}")
async def get_registration(request: Request, model_type: str, model_name: str) -> Response:
    """One model with all of its specs."""
    answer: Registration = await gateway_of(request).supervisor.call(GetFamily(name=model_name, model_type=known_type(model_type)))
    return json_response(answer)


@router.delete("/{model_type}/{model_name}")
async def unregister_model(request: Request, model_type: str, model_name: str) -> Response:
    """Take a registered model out again. What runs of it runs on."""
    await gateway_of(request).supervisor.call(UnregisterFamily(name=model_name, model_type=known_type(model_type)))
    return json_response(RegistrationRemoval(model_name=model_name))
