"""`/v1/cache/models`: the downloaded models, on all workers, under Xinference's paths."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from xi_core.api.control import CachedModelList, CacheRemoval
from xi_core.cluster.messages import FoundModels, FreedModels, ListCache, RemoveCache
from xi_core.errors import InvalidRequest
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(tags=["cluster"])


@router.get("/v1/cache/models")
async def list_cache(request: Request, model_name: str | None = None) -> Response:
    """The downloaded models; with `model_name`, a hub id or a family's name, only its."""
    answer: FoundModels = await gateway_of(request).supervisor.call(ListCache(name=model_name or ""))
    return json_response(CachedModelList(answer.models))


@router.delete("/v1/cache/models")
async def remove_cache(
    request: Request,
    model_name: str | None = None,
    source: str | None = None,
    revision: str | None = None,
) -> Response:
    """Delete a downloaded model from every worker that has it. One that a replica uses is a 409."""
    if not model_name:
        raise InvalidRequest("name the model that is to be deleted: model_name, a hub id or a family's name", param="model_name")
    answer: FreedModels = await gateway_of(request).supervisor.call(RemoveCache(name=model_name, source=source, revision=revision))
    return json_response(CacheRemoval(result=True, freed=answer.freed))
