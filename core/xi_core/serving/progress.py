"""Whether an engine makes progress: the watch over its step counter, and the probe that asks it for one token, vector or score."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from xi_core.engine.base import Engine
from xi_core.errors import EngineError, XiError
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK
from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.wire.frames import Data, Frame, Open, Submit

if TYPE_CHECKING:
    from xi_core.serving.service import Service

LONGEST_LOOK = 2.0
"""Most seconds that count between two looks at the progress: after longer ones it was this process that stood still, not its engine."""


class ProgressWatch:
    """Tells when an engine is busy for `hang_timeout` seconds without a step. Look at it regularly: it keeps the clock."""

    def __init__(self, engine: Engine, hang_timeout: float) -> None:
        self._engine = engine
        self._hang_timeout = hang_timeout
        self._last_steps = 0
        self._looked_at = time.monotonic()
        self._stalled = 0.0

    def look(self, busy: bool) -> str | None:
        """Why the engine makes no progress; None when it does, or has nothing to do."""
        try:
            self._engine.check()
        except XiError as error:
            return error.message
        steps, now = self._engine.stats().steps, time.monotonic()
        stood_still = steps == self._last_steps and busy
        self._stalled = self._stalled + min(now - self._looked_at, LONGEST_LOOK) if stood_still else 0.0
        self._last_steps, self._looked_at = steps, now
        return f"no step for {self._stalled:.0f} s while requests run" if self._stalled > self._hang_timeout else None


async def probe(service: Service, timeout: float) -> None:
    """Have `service` serve one token to ourselves, the whole way. Raises `EngineError` if it doesn't come in `timeout` seconds."""
    done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    status, body = 200, b""

    def outlet(frame: Frame) -> None:
        nonlocal status, body
        if isinstance(frame, Open):
            status = frame.status
        elif isinstance(frame, Data):
            body += frame.data
        elif not done.done():
            done.set_result(body)

    run = service.submit(_request(service), outlet)
    try:
        await asyncio.wait_for(done, timeout)
    except TimeoutError:
        raise EngineError(f"the engine gave no token within {timeout:.0f} s") from None
    finally:
        if run is not None:
            service.abort(run)
    if status not in (200, 429):  # a full queue is progress enough
        raise EngineError(f"the engine can't answer: {body.decode(errors='replace')[:500]}")


def _request(service: Service) -> Submit:
    endpoints, uid = service.model.manifest, service.plan.uid
    if endpoints.serves(EMBEDDINGS):
        return Submit(0, EMBEDDINGS, msgspec.json.encode({"model": uid, "input": "Hi"}))
    if endpoints.serves(RERANK):
        return Submit(0, RERANK, msgspec.json.encode({"model": uid, "query": "Hi", "documents": ["Hi"]}))
    body: dict[str, Any] = {"model": uid, "max_tokens": 1, "temperature": 0}
    if service.model.manifest.serves(COMPLETIONS):
        return Submit(0, COMPLETIONS, msgspec.json.encode({**body, "prompt": "Hi"}))
    return Submit(0, CHAT, msgspec.json.encode({**body, "messages": [{"role": "user", "content": "Hi"}]}))
