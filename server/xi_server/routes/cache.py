"""`/v1/cache/models`: the downloaded models, on all workers, under Xinference's paths. `/v1/cache/pulls`: downloads without a launch."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from xi_core.api.body import decode_body
from xi_core.api.control import CachedModelList, CacheRemoval
from xi_core.api.pulls import PullOrder, PullStatus
from xi_core.cluster.messages import FoundModels, FreedModels, GetPull, ListCache, PullModel, RemoveCache, StopPull
from xi_core.errors import InvalidRequest
from xi_server.asgi import read_body
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(tags=["cluster"])

OfModel = Annotated[str | None, Query(description="Only this model: a hub id, the last part of one, or a family's name")]
WithRest = Annotated[bool, Query(description="Also what came in part, or is damaged")]
ToDelete = Annotated[str | None, Query(description="The model, which must be named: a hub id, the last part of one, or a family's name")]
FromSource = Annotated[str | None, Query(description="Only what came from this source; default: from any")]
OfRevision = Annotated[str | None, Query(description="Only this commit of it, as `model_version` tells it; default: all")]

_pull_order = msgspec.json.Decoder(PullOrder).decode


@router.get("/v1/cache/models")
async def list_cache(request: Request, model_name: OfModel = None, incomplete: WithRest = False) -> Response:
    """The downloaded models, on all workers."""
    answer: FoundModels = await gateway_of(request).supervisor.call(ListCache(name=model_name or "", incomplete=incomplete))
    return json_response(CachedModelList(answer.models))


@router.delete("/v1/cache/models")
async def remove_cache(request: Request, model_name: ToDelete = None, source: FromSource = None, revision: OfRevision = None) -> Response:
    """Delete a downloaded model from every worker that has it. One that a replica uses is a 409."""
    if not model_name:
        raise InvalidRequest("name the model that is to be deleted: model_name, a hub id or a family's name", param="model_name")
    answer: FreedModels = await gateway_of(request).supervisor.call(RemoveCache(name=model_name, source=source, revision=revision))
    return json_response(CacheRemoval(result=True, freed=answer.freed))


@router.post("/v1/cache/models")
async def pull_model(request: Request) -> Response:
    """Download a model on the workers' machines, without a launch. Answers at once; watch `/v1/cache/pulls/{pull_id}`."""
    gateway = gateway_of(request)
    order = decode_body(_pull_order, await read_body(request.scope, request.receive, gateway.settings.max_body))
    answer: PullStatus = await gateway.supervisor.call(PullModel(order=order))
    return json_response(answer)


@router.get("/v1/cache/pulls/{pull_id}")
async def get_pull(request: Request, pull_id: str) -> Response:
    """How far a download is on each worker: `download` tells bytes, rate and time left, in all and of each file that is coming."""
    answer: PullStatus = await gateway_of(request).supervisor.call(GetPull(pull_id=pull_id))
    return json_response(answer)


@router.delete("/v1/cache/pulls/{pull_id}")
async def stop_pull(request: Request, pull_id: str) -> Response:
    """End a download on all workers. What came is kept, and gone on with by the next."""
    answer: PullStatus = await gateway_of(request).supervisor.call(StopPull(pull_id=pull_id))
    return json_response(answer)
