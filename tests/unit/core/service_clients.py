"""Services with their clients, and engines that never give a token."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from xi_core.engine.base import ApiRequest, ApiSink, LoadedModel, Progress, StepOutput
from xi_core.replica.process import service_for
from xi_core.serving.parser import OutputParser
from xi_core.serving.request import CHAT
from xi_core.serving.service import Service
from xi_core.serving.tokens import TokenService
from xi_core.testing.fakes import CountingEngine, ScriptedEngine
from xi_core.testing.harness import Answer, plan_for
from xi_core.wire.frames import End, Frame, Submit
from xi_core.wire.plan import LaunchPlan, ServingLimits


class Client:
    """Frames of one request."""

    def __init__(self, service: Service, id: int = 1, **fields: Any) -> None:
        self.frames: list[Frame] = []
        self.moved = asyncio.Event()
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0, **fields}
        self.run = service.submit(Submit(id, CHAT, msgspec.json.encode(body)), self._put)

    def _put(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.moved.set()

    async def until(self, kind: type[Any]) -> None:
        async with asyncio.timeout(5):
            while not any(isinstance(frame, kind) for frame in self.frames):
                self.moved.clear()
                await self.moved.wait()

    async def answer(self) -> Answer:
        await self.until(End)
        return Answer(self.frames)


@contextlib.asynccontextmanager
async def serving(engine: Any, *, parser: type[OutputParser] | None = None, slots: int = 1, **limits: Any) -> AsyncIterator[Service]:
    plan: LaunchPlan = plan_for("x:Y", "", "fake", slots=slots)
    plan.limits = ServingLimits(**limits)
    if parser is not None:
        plan.parsers["tool"] = "xi_plugins.parsers.hermes:HermesParser"
    service = service_for(plan, engine, engine.load(plan, lambda stage, share: None))
    if isinstance(service, TokenService) and parser is not None:
        service._parsers._tool = parser
    try:
        yield service
    finally:
        service.close(2.0)


class Stuck(CountingEngine):
    """Takes a sequence and never gives a token."""

    def step(self) -> StepOutput:
        import time

        time.sleep(0.01)
        return StepOutput([])


class Mute(ScriptedEngine):
    """Takes requests and never answers; `sink` is for the test."""

    sink: ApiSink
    taken: list[int]

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        self.taken = []
        return super().load(plan, progress)

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        self.sink = sink
        self.taken.append(request.id)

    def abort(self, id: int) -> None:
        self.sink.done(id)
