"""Putting a child's server to sleep and waking it, by calls that its engine names. `child_server.py` calls it, on its own loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from xi_core.engine.child_address import Address
from xi_core.engine.child_http import BadAnswer
from xi_core.engine.child_words import ServerCall
from xi_core.errors import Conflict, EngineError


async def ask_all(engine: str, address: Address, calls: Sequence[ServerCall], seconds: float) -> None:
    """Make these calls, one after the other, each of which may take so many seconds.

    Raises `Conflict` where the server refuses the first, so that nothing has changed, and `EngineError` where nobody knows what has.
    """
    for number, call in enumerate(calls):
        asked = f"the server of engine {engine}, asked for {call.method} {call.path},"
        body = b"" if call.body is None else msgspec.json.encode(call.body)
        try:
            reply = await asyncio.wait_for(address.ask(call.method, call.path, body), seconds)
        except TimeoutError:
            raise EngineError(f"{asked} did not answer within {seconds:g} s") from None
        except (OSError, BadAnswer) as error:
            raise EngineError(f"{asked} broke off: {error}") from None
        if reply.status >= 300:
            said = reply.body[:500].decode("utf-8", "replace").strip() or "it gave no reason"
            refused = number == 0 and 400 <= reply.status < 500
            raise (Conflict if refused else EngineError)(f"{asked} answered {reply.status}: {said}")
