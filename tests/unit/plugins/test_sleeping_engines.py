"""The sleep modes of vLLM and SGLang: whether a launch has one, how the server is started for it, and what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xi_core.engine.child_address import Address
from xi_core.engine.child_server import ChildServerEngine, ServerCommand
from xi_core.errors import Conflict, EngineError, UnknownOption
from xi_core.importing import import_path
from xi_core.testing.harness import plan_for
from xi_core.testing.stub_engine import StubServerEngine
from xi_core.testing.waiting import wait_until
from xi_core.wire.manifest import YES
from xi_core.wire.plan import LaunchPlan, LoraModule, ServingLimits
from xi_plugins.engines.sglang import plugin as sglang
from xi_plugins.engines.sglang import sleeping as sglang_sleeping
from xi_plugins.engines.sglang.engine import SglangEngine
from xi_plugins.engines.vllm import plugin as vllm
from xi_plugins.engines.vllm import sleeping as vllm_sleeping
from xi_plugins.engines.vllm.engine import VllmEngine

LORA = [LoraModule(name="l", path="/l")]
OPTIONS = {vllm: "enable_sleep_mode", sglang: "enable_memory_saver"}
PLUGINS = pytest.mark.parametrize("plugin", [vllm, sglang], ids=["vllm", "sglang"])


def plan(plugin: Any, devices: int = 1, **options: Any) -> LaunchPlan:
    info = next(iter(plugin.xi_engines()))
    made = plan_for(info.engine, "/nowhere", "pytorch", "m", **info.check_options(options))
    made.devices = [f"cuda:{number}" for number in range(devices)]
    return made


def command(plugin: Any, made: LaunchPlan, folder: Path, socket: str | None = "/run/s.sock") -> ServerCommand:
    engine: ChildServerEngine = import_path(made.engine.path)()
    where: dict[str, Any] = {"socket": socket} if engine.unix_socket and socket else {"port": 4711}
    found: ServerCommand = engine.command(made, Address(key="secret", folder=str(folder), **where))
    return found


# ---- whether it has one -----------------------------------------------------------------------------


@PLUGINS
@pytest.mark.parametrize("kind", ["LLM", "embedding"])
def test_a_launch_without_the_option_says_which(plugin: Any, kind: str) -> None:
    info = next(iter(plugin.xi_engines()))
    engine = import_path(info.engines_by_type[kind] if kind != "LLM" else info.engine)()
    model = engine.loaded(plan(plugin), {"max_model_len": 64})
    assert model.sleep.state == "no"
    assert model.sleep.reason == f"launch it with --{OPTIONS[plugin].replace('_', '-')}"
    assert engine.loaded(plan(plugin, **{OPTIONS[plugin]: True}), {"max_model_len": 64}).sleep.state != "no"


def test_vllm_has_both_levels_but_for_lora_modules() -> None:
    made = plan(vllm, enable_sleep_mode=True)
    assert vllm_sleeping.ability(made) == YES
    made.lora_modules = LORA
    assert vllm_sleeping.ability(made).values == ("1",)


def test_sglang_has_the_first_level_with_its_weights_in_main_memory() -> None:
    assert sglang_sleeping.ability(plan(sglang, enable_memory_saver=True)).values == ("1",)
    without = sglang_sleeping.ability(plan(sglang, enable_memory_saver=True, enable_weights_cpu_backup=False))
    assert (without.state, without.reason) == ("no", "launch it with --enable-weights-cpu-backup")


# ---- how the server is started ----------------------------------------------------------------------


def test_vllms_routes_are_there_only_for_a_launch_with_the_option(tmp_path: Path) -> None:
    assert command(vllm, plan(vllm), tmp_path).env["VLLM_SERVER_DEV_MODE"] == "0", "also where --env says otherwise"
    found = command(vllm, plan(vllm, enable_sleep_mode=True), tmp_path)
    assert found.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert "--enable-sleep-mode" in found.argv
    off = command(vllm, plan(vllm, devices=0, enable_sleep_mode=False), tmp_path)
    assert off.env["VLLM_SERVER_DEV_MODE"] == "0"


def test_vllms_routes_which_ask_for_no_key_are_never_on_a_port(tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="needs a Unix socket") as wrong:
        command(vllm, plan(vllm, enable_sleep_mode=True), tmp_path, socket=None)
    assert wrong.value.param == "enable_sleep_mode"


def test_sglang_keeps_a_copy_of_the_weights_unless_told_otherwise(tmp_path: Path) -> None:
    assert "--enable-weights-cpu-backup" not in command(sglang, plan(sglang), tmp_path).argv
    assert "--enable-weights-cpu-backup" in command(sglang, plan(sglang, enable_memory_saver=True), tmp_path).argv
    without = plan(sglang, enable_memory_saver=True, enable_weights_cpu_backup=False)
    assert "--enable-weights-cpu-backup" not in command(sglang, without, tmp_path).argv


def test_sglangs_memory_saver_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="on a CPU; leave it out, or give GPUs") as wrong:
        command(sglang, plan(sglang, devices=0, enable_memory_saver=True), tmp_path)
    assert wrong.value.param == "enable_memory_saver"


# ---- what the server is asked, by the stub ----------------------------------------------------------


def over_stub(kind: type[ChildServerEngine]) -> type[ChildServerEngine]:
    """An engine whose server is the stub, by the engine's own calls."""

    class Stubbed(kind):  # type: ignore[misc, valid-type]
        name = "stubbed"
        unix_socket = True

        def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
            return StubServerEngine().command(plan, address)

    return Stubbed


Loaded = Callable[..., ChildServerEngine]


@pytest.fixture
def loaded() -> Iterator[Loaded]:
    made: list[ChildServerEngine] = []

    def load(kind: type[ChildServerEngine], **options: Any) -> ChildServerEngine:
        stub = plan_for("x:Y", "", "fake", "m", **{"sleep_mode": "on", **options})
        stub.limits = ServingLimits(launch_timeout=20.0)
        made.append(over_stub(kind)())
        made[-1].load(stub, lambda *_: None)
        return made[-1]

    yield load
    for engine in made:
        engine.close(2.0)


def asked(engine: ChildServerEngine, count: int) -> list[str]:
    """What the server was asked, once it has told of so many: its words come by a pipe of their own, after its answer."""
    child = engine._child
    assert child is not None

    def told() -> list[str]:
        return [line.removeprefix("asked for ") for line in child.lines if line.startswith("asked for")]

    wait_until(lambda: len(told()) >= count, 10.0, f"{count} requests at the stub")
    return told()


def test_vllm_is_asked_to_sleep_and_to_wake(loaded: Loaded) -> None:
    engine = loaded(VllmEngine)
    engine.sleep(1)
    engine.wake()
    assert asked(engine, 2) == ["/sleep?level=1 null", "/wake_up null"]


def test_vllm_reads_the_weights_again_after_level_2(loaded: Loaded) -> None:
    engine = loaded(VllmEngine)
    engine.sleep(2)
    engine.wake()
    assert asked(engine, 4) == [
        "/sleep?level=2 null",
        "/wake_up?tags=weights null",
        '/collective_rpc {"method": "reload_weights"}',
        "/wake_up?tags=kv_cache null",
    ]


def test_sglang_is_asked_whether_it_is_idle_first(loaded: Loaded) -> None:
    engine = loaded(SglangEngine)
    engine.sleep(1)
    engine.wake()
    assert asked(engine, 3) == ["/flush_cache?timeout=10 null", "/release_memory_occupation {}", "/resume_memory_occupation {}"]


@pytest.mark.parametrize("kind", [VllmEngine, SglangEngine])
def test_a_server_that_refuses_is_in_conflict_and_one_that_fails_is_broken(loaded: Loaded, kind: type[ChildServerEngine]) -> None:
    with pytest.raises(Conflict, match=r"answered 400: .*it is busy"):
        loaded(kind, sleep_mode="busy").sleep(1)
    with pytest.raises(EngineError, match=r"answered 500: .*no memory"):
        loaded(kind, sleep_mode="broken").sleep(1)


def test_a_server_that_is_gone_is_broken(loaded: Loaded) -> None:
    engine = loaded(VllmEngine)
    engine.close(2.0)
    with pytest.raises(EngineError, match="closed"):
        engine.sleep(1)
