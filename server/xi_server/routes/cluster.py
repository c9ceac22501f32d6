"""`GET /v1/cluster/info`: the processes that serve; `GET /v1/cluster/auth`: whether a key is needed."""

from __future__ import annotations

import os

from fastapi import APIRouter, Request, Response

from xi_core import __version__
from xi_core.api.control import ClusterInfo, ProcessInfo
from xi_core.cluster.messages import Cluster, GetCluster
from xi_server.routes.answers import gateway_of, json_response

router = APIRouter(tags=["cluster"])


@router.get("/v1/cluster/info")
async def cluster_info(request: Request) -> Response:
    """The version and every process of the cluster, this gateway among them."""
    answer: Cluster = await gateway_of(request).supervisor.call(GetCluster())
    processes = list(answer.processes)
    if not any(process.pid == os.getpid() and process.role == "gateway" for process in processes):
        processes.append(ProcessInfo(role="gateway", pid=os.getpid()))
    return json_response(ClusterInfo(version=__version__, processes=processes))


@router.get("/v1/cluster/auth")
async def cluster_auth(request: Request) -> Response:
    """Whether this server asks for an API key. It needs none itself: Xinference's clients ask it first."""
    return json_response({"auth": bool(gateway_of(request).settings.api_key)})
