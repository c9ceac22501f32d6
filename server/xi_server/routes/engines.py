"""`GET /v1/engines`: which engines there are and where they run."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from xi_core.cluster.messages import Engines, ListEngines
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(tags=["engines"])


@router.get("/v1/engines")
async def list_engines(request: Request, model: str | None = None) -> Response:
    """The engines, and whether they run on some worker; with `model`, also whether they take that model."""
    answer: Engines = await gateway_of(request).supervisor.call(ListEngines(model))
    return json_response(answer.engines)
