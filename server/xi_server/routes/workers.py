"""`/v1/workers`: the machines of the cluster; draining one; stopping all. `/v1/placements`: dry runs."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from xi_core.api.body import decode_body
from xi_core.api.control import DrainAnswer, DrainOrder, EnvironmentRemoval, StopAnswer
from xi_core.cluster.messages import (
    Drain,
    Explain,
    Explained,
    FoundEnvironments,
    ListEnvironments,
    ListWorkers,
    RemoveEnvironment,
    StopCluster,
    Workers,
)
from xi_server.asgi import read_body
from xi_server.routes.answers import gateway_of, json_response
from xi_server.routes.launching import launch_spec

router = APIRouter(tags=["cluster"])

_drain_order = msgspec.json.Decoder(DrainOrder).decode


@router.get("/v1/workers")
async def list_workers(request: Request) -> Response:
    """The workers with their devices, memory, load, versions and replicas."""
    answer: Workers = await gateway_of(request).supervisor.call(ListWorkers())
    return json_response(answer.workers)


@router.post("/v1/workers/{worker}/drain")
async def drain_worker(request: Request, worker: str) -> Response:
    """Move all replicas from a worker to others; each ends when its replacement serves. Answers at once; watch `/v1/workers`."""
    gateway = gateway_of(request)
    body = await read_body(request.scope, request.receive, gateway.settings.max_body)
    order = decode_body(_drain_order, body) if body else DrainOrder()
    await gateway.supervisor.call(Drain(worker=worker, seconds=order.seconds, undo=order.undo))
    return json_response(DrainAnswer(worker=worker, draining=not order.undo))


@router.post("/v1/placements")
async def explain_placement(request: Request) -> Response:
    """Where each replica of a launch would go, with every device's reason. The body is a launch's; nothing is started."""
    gateway = gateway_of(request)
    body = await read_body(request.scope, request.receive, gateway.settings.max_body)
    answer: Explained = await gateway.supervisor.call(Explain(launch_spec(body)))
    return json_response(answer.replicas)


@router.get("/v1/virtualenvs")
async def list_environments(request: Request) -> Response:
    """The environments of models, on all workers."""
    answer: FoundEnvironments = await gateway_of(request).supervisor.call(ListEnvironments())
    return json_response(answer.environments)


@router.delete("/v1/virtualenvs/{name}")
async def remove_environment(request: Request, name: str) -> Response:
    """Delete an environment from every worker that has it. One that is used is a 409."""
    await gateway_of(request).supervisor.call(RemoveEnvironment(name=name))
    return json_response(EnvironmentRemoval(name=name))


@router.post("/v1/cluster/stop")
async def stop_cluster(request: Request) -> Response:
    """Stop every worker with what it runs, the supervisor, and what was started with it."""
    await gateway_of(request).supervisor.call(StopCluster())
    return json_response(StopAnswer())
