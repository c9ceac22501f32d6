"""Commands and notices of the control plane: gateway ↔ supervisor ↔ worker, carried by `xi_core.transport.rpc`.

A command is a struct whose tag is its name on the wire; its answer's type stands in the `ANSWERS` of its module. A notice expects no
answer. There is one module for each conversation; others import from here.
"""

from __future__ import annotations

from msgspec import Struct

from xi_core.cluster.messages import catalog, disks, launches, machines, pulls, replicas, routing, workers
from xi_core.cluster.messages.answers import Done
from xi_core.cluster.messages.catalog import Engines, Families, GetFamily, ListEngines, ListFamilies, RegisterFamily, UnregisterFamily
from xi_core.cluster.messages.disks import (
    FoundEnvironments,
    FoundModels,
    FreedModels,
    ListCache,
    ListEnvironments,
    RemoveCache,
    RemoveEnvironment,
)
from xi_core.cluster.messages.launches import (
    Explain,
    Explained,
    GetModel,
    Launch,
    Launched,
    ListModels,
    Models,
    ReadLog,
    Scale,
    Sleep,
    Terminate,
)
from xi_core.cluster.messages.machines import (
    Cluster,
    Drain,
    GatewayKeysRotated,
    GetCluster,
    JoinTokenMade,
    ListMembers,
    ListWorkers,
    MemberRemoved,
    Members,
    NewJoinToken,
    RemoveMember,
    RotateGatewayKeys,
    StopCluster,
    Workers,
)
from xi_core.cluster.messages.pulls import FetchModel, GetPull, PullModel, StopPull
from xi_core.cluster.messages.replicas import (
    FetchLog,
    Prepare,
    Prepared,
    ReplicaGone,
    ReplicaRecord,
    ReplicaUpdate,
    SleepReplica,
    StartReplica,
    StopReplica,
)
from xi_core.cluster.messages.routing import GatewayKeys, ModelRoute, ReplicaRoute, Subscribe, Subscribed, TableUpdate
from xi_core.cluster.messages.workers import Inspect, Inspected, Leaving, MatchEngines, Matches, Register, Registered, Shutdown, WorkerBeat

OF_GATEWAYS: tuple[type[Struct], ...] = (
    *launches.ANSWERS,
    *machines.ANSWERS,
    *disks.ANSWERS,
    *pulls.ANSWERS,
    *catalog.ANSWERS,
    *routing.ANSWERS,
)
"""The commands that gateways send."""

ANSWERS: dict[type[Struct], type[Struct]] = {
    **launches.ANSWERS,
    **machines.ANSWERS,
    **disks.ANSWERS,
    **pulls.ANSWERS,
    **pulls.OF_SUPERVISORS,
    **catalog.ANSWERS,
    **routing.ANSWERS,
    **workers.ANSWERS,
    **replicas.ANSWERS,
}
"""Every command with the type of its answer."""

NOTICES: tuple[type[Struct], ...] = (WorkerBeat, ReplicaUpdate, ReplicaGone, TableUpdate, GatewayKeys)
"""Every notice; with `ANSWERS` it makes the vocabulary of each link."""

__all__ = [
    "ANSWERS",
    "NOTICES",
    "OF_GATEWAYS",
    "Cluster",
    "Done",
    "Drain",
    "Engines",
    "Explain",
    "Explained",
    "Families",
    "FetchLog",
    "FetchModel",
    "FoundEnvironments",
    "FoundModels",
    "FreedModels",
    "GatewayKeys",
    "GatewayKeysRotated",
    "GetCluster",
    "GetFamily",
    "GetModel",
    "GetPull",
    "Inspect",
    "Inspected",
    "JoinTokenMade",
    "Launch",
    "Launched",
    "Leaving",
    "ListCache",
    "ListEngines",
    "ListEnvironments",
    "ListFamilies",
    "ListMembers",
    "ListModels",
    "ListWorkers",
    "MatchEngines",
    "Matches",
    "MemberRemoved",
    "Members",
    "ModelRoute",
    "Models",
    "NewJoinToken",
    "Prepare",
    "Prepared",
    "PullModel",
    "ReadLog",
    "Register",
    "RegisterFamily",
    "Registered",
    "RemoveCache",
    "RemoveEnvironment",
    "RemoveMember",
    "ReplicaGone",
    "ReplicaRecord",
    "ReplicaRoute",
    "ReplicaUpdate",
    "RotateGatewayKeys",
    "Scale",
    "Shutdown",
    "Sleep",
    "SleepReplica",
    "StartReplica",
    "StopCluster",
    "StopPull",
    "StopReplica",
    "Subscribe",
    "Subscribed",
    "TableUpdate",
    "Terminate",
    "UnregisterFamily",
    "WorkerBeat",
    "Workers",
]
