"""Probes and metrics: `/health`, `/ready`, `/metrics`."""

from __future__ import annotations

import os

from fastapi import APIRouter, Request, Response

from xi_core import __version__
from xi_core.api.control import Health, Readiness
from xi_server.metrics import CONTENT_TYPE
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> Response:
    """Whether this gateway lives."""
    return json_response(Health(version=__version__, pid=os.getpid()))


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 when this gateway follows a supervisor and each ready model has a replica that answers; else 503 with the reasons."""
    reasons = gateway_of(request).unready()
    return json_response(Readiness(ready=not reasons, reasons=reasons), 503 if reasons else 200)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(gateway_of(request).metrics.render(), media_type=CONTENT_TYPE)
