"""`/v1/cluster`: the processes that serve, whether a key is needed, and tokens that let one more machine in."""

from __future__ import annotations

import os

import msgspec
from fastapi import APIRouter, Request, Response

from xi_core import __version__
from xi_core.access import is_loopback
from xi_core.api.body import decode_body
from xi_core.api.control import ClusterInfo, JoinTokenAnswer, JoinTokenOrder, ProcessInfo
from xi_core.cluster.messages import Cluster, GetCluster, JoinTokenMade, NewJoinToken
from xi_core.errors import Forbidden
from xi_server.asgi import read_body
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(tags=["cluster"])

_order = msgspec.json.Decoder(JoinTokenOrder).decode


@router.get("/v1/cluster/info")
async def cluster_info(request: Request) -> Response:
    """The version and every process of the cluster, this gateway among them."""
    answer: Cluster = await gateway_of(request).supervisor.call(GetCluster())
    processes = list(answer.processes)
    if not any(process.pid == os.getpid() and process.role == "gateway" for process in processes):
        processes.append(ProcessInfo(role="gateway", pid=os.getpid()))
    return json_response(ClusterInfo(version=__version__, processes=processes, cluster_endpoint=answer.endpoint or None))


@router.post("/v1/cluster/join-tokens")
async def new_join_token(request: Request) -> Response:
    """A token with which one more worker or gateway may join. Where no API key is set, only this machine may ask for one."""
    gateway = gateway_of(request)
    client = request.client.host if request.client is not None else ""
    if not gateway.settings.api_key and not is_loopback(client):
        raise Forbidden("this server has no API key, so only its own machine may make join tokens: ask there, or set XI_API_KEY")
    body = await read_body(request.scope, request.receive, gateway.settings.max_body)
    order = decode_body(_order, body) if body else JoinTokenOrder()
    made: JoinTokenMade = await gateway.supervisor.call(NewJoinToken(role=order.role, ttl=order.ttl))
    return json_response(JoinTokenAnswer(token=made.token, command=made.command))


@router.get("/v1/cluster/auth")
async def cluster_auth(request: Request) -> Response:
    """Whether this server asks for an API key. It needs none itself: Xinference's clients ask it first."""
    return json_response({"auth": bool(gateway_of(request).settings.api_key)})
