"""`/v1/cluster`: the processes that serve, whether a key is needed, and who may join: tokens, the list, striking somebody off it."""

from __future__ import annotations

import os
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from xi_core import __version__
from xi_core.access import is_loopback
from xi_core.api.body import decode_body
from xi_core.api.control import ClusterInfo, JoinTokenAnswer, JoinTokenOrder, KeyNeed, MemberRole, ProcessInfo
from xi_core.api.members import KeyRotation, MemberRemoval
from xi_core.cluster.messages import (
    Cluster,
    GatewayKeysRotated,
    GetCluster,
    JoinTokenMade,
    ListMembers,
    MemberRemoved,
    Members,
    NewJoinToken,
    RemoveMember,
    RotateGatewayKeys,
)
from xi_core.errors import Forbidden
from xi_server.asgi import read_body
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(tags=["cluster"])

OfRole = Annotated[MemberRole | None, Query(description="Needed only where a worker and a gateway have this name")]
Force = Annotated[bool, Query(description="Remove a worker though it runs replicas: they are cut off, and started elsewhere")]

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
    _check_may_admit(request, "make join tokens")
    body = await read_body(request.scope, request.receive, gateway.settings.max_body)
    order = decode_body(_order, body) if body else JoinTokenOrder()
    made: JoinTokenMade = await gateway.supervisor.call(NewJoinToken(role=order.role, ttl=order.ttl))
    return json_response(JoinTokenAnswer(token=made.token, command=made.command))


@router.get("/v1/cluster/members")
async def list_members(request: Request) -> Response:
    """Who may join without a token: the workers and gateways whose keys are on the list, and which of them are connected."""
    answer: Members = await gateway_of(request).supervisor.call(ListMembers())
    return json_response(answer.members)


@router.delete("/v1/cluster/members/{name}")
async def remove_member(request: Request, name: str, role: OfRole = None, force: Force = False) -> Response:
    """Strike a worker or gateway off the list and cut its connections; it ends. A worker that runs replicas is a 409 without `force`."""
    _check_may_admit(request, "remove members")
    command = RemoveMember(name=name, role=role, force=force)
    removed: MemberRemoved = await gateway_of(request).supervisor.call(command)
    return json_response(MemberRemoval(name=name, role=removed.role, replicas=removed.replicas))


@router.post("/v1/cluster/gateway-keys")
async def rotate_gateway_keys(request: Request) -> Response:
    """Replace the keys that gateways show to replicas. Replicas that run go on opening to the older ones; new ones don't."""
    _check_may_admit(request, "replace keys")
    rotated: GatewayKeysRotated = await gateway_of(request).supervisor.call(RotateGatewayKeys())
    return json_response(KeyRotation(replicas=rotated.replicas))


def _check_may_admit(request: Request, what: str) -> None:
    """Raises `Forbidden` for other machines where nothing else keeps strangers out."""
    client = request.client.host if request.client is not None else ""
    if not gateway_of(request).settings.api_key and not is_loopback(client):
        raise Forbidden(f"this server has no API key, so only its own machine may {what}: ask there, or set XI_API_KEY")


@router.get("/v1/cluster/auth")
async def cluster_auth(request: Request) -> Response:
    """Whether this server asks for an API key. It needs none itself: Xinference's clients ask it first."""
    return json_response(KeyNeed(auth=bool(gateway_of(request).settings.api_key)))
