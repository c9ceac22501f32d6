"""Whether a service is healthy: steps, checks, probes, and processes that stood still."""

import asyncio

import pytest
from service_clients import Client, Mute, Stuck, serving

from xi_core.errors import EngineError
from xi_core.serving.progress import probe
from xi_core.testing.fakes import CountingEngine, ScriptedEngine


async def test_no_step_while_busy_is_unhealthy() -> None:
    async with serving(Stuck(), hang_timeout=0.05) as service:
        assert service.unhealthy() is None
        Client(service)
        async with asyncio.timeout(5):
            while service.unhealthy() is None:
                await asyncio.sleep(0.01)
        assert "no step" in (service.unhealthy() or "")


async def test_idle_is_healthy() -> None:
    async with serving(CountingEngine(), hang_timeout=0.01) as service:
        await asyncio.sleep(0.03)
        assert service.unhealthy() is None


async def test_check_is_believed() -> None:
    class Dead(ScriptedEngine):
        def check(self) -> None:
            raise EngineError("the child is dead")

    async with serving(Dead()) as service:
        assert service.unhealthy() == "the child is dead"
        assert service.load().healthy is False


async def test_probe_fails_when_no_token_comes() -> None:
    async with serving(Mute()) as service:
        with pytest.raises(EngineError, match="no token"):
            await probe(service, 0.05)


async def test_a_process_that_stood_still_does_not_blame_its_engine() -> None:
    async with serving(Stuck(), hang_timeout=30.0) as service:
        Client(service)
        service.unhealthy()
        service._progress._looked_at -= 100  # as after SIGSTOP and SIGCONT
        assert service.unhealthy() is None
        for _ in range(20):
            service._progress._looked_at -= 2
            service.unhealthy()
        assert "no step" in (service.unhealthy() or ""), "many looks without a step do count"
