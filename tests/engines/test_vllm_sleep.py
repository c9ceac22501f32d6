"""vLLM's own routes for sleep, on the CPU, which frees nothing: they are there, take what xi sends, and the model answers as before."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from xi_core.engine.child_address import Address
from xi_core.engine.child_http import Reply
from xi_core.engine.child_server import ServerCommand
from xi_core.testing.harness import Harness, plan_for
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.vllm.engine import VllmEngine
from xi_plugins.engines.vllm.sleeping import DEVELOPMENT

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-engine-vllm` builds an environment for it", allow_module_level=True)

pytestmark = [pytest.mark.engine("vllm"), pytest.mark.slow, pytest.mark.timeout(600)]

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"


class Development(VllmEngine):
    """With the routes, though vLLM has no sleep mode on a CPU."""

    def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
        found = super().command(plan, address)
        found.env[DEVELOPMENT] = "1"
        return found

    def is_sleeping(self) -> bool:
        assert self._address is not None
        reply: Reply = self._await(self._address.ask("GET", "/is_sleeping"))
        return b"true" in reply.body


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        plan = plan_for(f"{__name__}:Development", str(XI_TINY), "pytorch", dtype="float32", enforce_eager=True)
        with Harness(plan) as harness:
            yield harness


@pytest.mark.parametrize("level", [1, 2])
def test_it_pauses_and_answers_as_before_when_it_is_woken(harness: Harness, level: int) -> None:
    engine = harness.engine
    assert type(engine).__name__ == Development.__name__
    before = harness.chat("What is 2 + 3?", temperature=0).text
    engine.sleep(level)
    assert engine.is_sleeping()  # type: ignore[attr-defined]
    engine.check()
    engine.wake()
    assert not engine.is_sleeping()  # type: ignore[attr-defined]
    assert harness.chat("What is 2 + 3?", temperature=0).text == before
