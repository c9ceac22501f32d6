"""`StubServerEngine`: the smallest `ChildServerEngine`, over `stub_server.py`. Tests run it; authors may copy it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from xi_core.engine.base import LoadedModel
from xi_core.engine.child_address import Address
from xi_core.engine.child_server import ChildServerEngine, ServerCall, ServerCommand
from xi_core.testing.fake_plugin import full_manifest
from xi_core.wire.manifest import YES, Ability, no, pooling_manifest
from xi_core.wire.plan import LaunchPlan

SERVER = Path(__file__).with_name("stub_server.py")
METRICS = {"running": "stub_running", "cache_usage": "stub_cache", "generated_tokens": "stub_tokens_total", "waiting": "stub_without"}


class StubServerEngine(ChildServerEngine):
    """Options of the launch: `slots`, and any of the server's own."""

    name = "stub"
    metrics = METRICS

    def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
        where = ["--uds", address.socket] if address.socket else ["--port", str(address.port)]
        options = [f"--adapter={module.name}" for module in plan.lora_modules]
        given = {name.replace("_", "-"): value for name, value in plan.options.items() if name != "slots"}
        options += [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]
        return ServerCommand(
            argv=[sys.executable, str(SERVER), "--name", plan.uid, *where, *options], env={"STUB_SERVER_API_KEY": address.key}
        )

    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        slots = int(plan.options.get("slots", 4))
        return LoadedModel(context_length=card["max_model_len"], slots=slots, manifest=full_manifest(), sleep=_sleep(plan))

    def sleep_calls(self, level: int) -> list[ServerCall]:
        return [ServerCall(method="POST", path=f"/sleep?level={level}")]

    def wake_calls(self, level: int) -> list[ServerCall]:
        return [ServerCall(method="POST", path="/wake_up" + ("?tags=kv_cache" if level == 2 else ""))]

    def stage(self, line: str) -> tuple[str, float | None] | None:
        return ("loading weights", None) if line.startswith("loading") else None


class StubPoolingEngine(StubServerEngine):
    """The same server for embeddings and rerank."""

    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        return msgspec.structs.replace(super().loaded(plan, card), manifest=pooling_manifest("embeddings", "rerank"))


def _sleep(plan: LaunchPlan) -> Ability:
    return YES if plan.options.get("sleep_mode") else no("launch it with --sleep-mode on")
