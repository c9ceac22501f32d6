"""Where a replica listens for gateways, and with which keys: by the worker's way to its supervisor."""

from __future__ import annotations

from pathlib import Path

import msgspec

from xi_core.cluster import addresses
from xi_core.transport.security import KeyPair
from xi_core.wire.plan import LaunchPlan


def placed(plan: LaunchPlan, keys: KeyPair | None, address: str, ports: str, sockets: Path | None) -> LaunchPlan:
    """The plan with the place where its replica listens, so that no other life of it answers there; only the first of several ranks does.

    With `keys`, encrypted at `address` and one of the `ports` (`FIRST-LAST`). Without: a local socket named by incarnation in the folder
    `sockets`, or where there is none, any port of loopback.
    """
    security = None
    if plan.rendezvous is not None and plan.rendezvous.rank:
        endpoint = ""
    elif keys is not None and plan.security is not None:
        endpoint = addresses.endpoint(address, 0).removesuffix("0") + ports
        security = msgspec.structs.replace(plan.security, public=keys.public)
    elif sockets is not None:
        endpoint = f"ipc://{sockets / plan.incarnation}.sock"
    else:
        endpoint = "tcp://127.0.0.1:0"
    return msgspec.structs.replace(plan, endpoint=endpoint, security=security)
