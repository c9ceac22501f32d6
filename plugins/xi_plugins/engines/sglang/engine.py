"""`SglangEngine`: SGLang's own OpenAI server as a child process. Imported in the replica only; SGLang itself is loaded in the child alone.

Options are checked by the real `ServerArgs` when the child starts. Written against the sources of SGLang 0.5.23; not verified on a GPU.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from xi_core.engine.base import ApiRequest, LoadedModel
from xi_core.engine.child_address import Address
from xi_core.engine.child_options import cause, complaint, count, flags, parallelism
from xi_core.engine.child_server import ChildServerEngine, ServerCommand
from xi_core.engine.child_translate import to_server
from xi_core.errors import EngineError, EngineNotInstalled, XiError
from xi_core.models.inspect import has_chat_template
from xi_core.wire.manifest import Ability, Manifest, no
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.sglang.plugin import INSTALL, MANIFEST, NAME

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GPU_SLOTS = 256
"""Requests at once on a GPU, where the launch doesn't say; on a CPU it is XI_BATCH_SIZE."""
_TOO_MANY = re.compile(rb"maximum context length of (\d+) tokens.*?: (\d+) tokens from the input")
_STAGES = {"Load weight begin": "loading weights", "Load weight end": "preparing the cache", "Capture cuda graph": "capturing CUDA graphs"}


class SglangEngine(ChildServerEngine):
    """Runs one Hugging Face model. See `ChildServerEngine` for who calls what."""

    name = NAME
    unix_socket = False  # it has no option for one

    def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
        options = {"max_running_requests": _slots(plan), "log_level_http": "warning", **plan.options}
        options |= parallelism(NAME, plan.options, len(plan.devices), _spread_by(plan))
        if plan.chat_template is not None:
            options.setdefault("chat_template", address.write("chat_template.jinja", plan.chat_template))
        key = address.write("key.yaml", f"api-key: {address.key}\n")  # there is no variable for it, and a command line can be read by all
        argv = [sys.executable, "-P", "-m", "sglang.launch_server", "--config", key]
        argv += flags(
            {"model_path": plan.artifact.path, "served_model_name": plan.uid, "host": "127.0.0.1", "port": address.port}, negated=False
        )
        argv += flags(options, negated=False)
        return ServerCommand(argv=argv, defaults={"HF_HUB_OFFLINE": "1"})

    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        return LoadedModel(context_length=card["max_model_len"], slots=_slots(plan), manifest=manifest_for(plan))

    def body(self, request: ApiRequest) -> dict[str, Any]:
        body = to_server(request)
        return {**body, "top_k": body.get("top_k") or -1}

    def second_body(self, request: ApiRequest, data: bytes) -> dict[str, Any] | None:
        """SGLang refuses a max_tokens that doesn't fit beside the prompt, where xi's answers are cut to the context."""
        found = _TOO_MANY.search(data)
        if found is None or (room := int(found[1]) - int(found[2])) < 1:
            return None
        return {**self.body(request), "max_tokens": room}

    def stage(self, line: str) -> tuple[str, float | None] | None:
        return next(((stage, None) for sign, stage in _STAGES.items() if sign in line), None)

    def failed_start(self, how: str, lines: list[str]) -> XiError:
        if (wrong := complaint(NAME, lines)) is not None:
            return wrong
        why = cause(lines)
        if "No module named 'sglang" in why:
            return EngineNotInstalled(f"SGLang can't be imported: {why}; install it with: {INSTALL}")
        return EngineError(f"SGLang {how} while it started: {why}") if why else super().failed_start(how, lines)


def manifest_for(plan: LaunchPlan) -> Manifest:
    """What this launch honours: chat needs a template, tools a parser and seeds an option that the launch names."""
    options, seed = plan.options, dict[str, Ability]()
    if not options.get("enable_deterministic_inference"):
        seed = {"seed": no("launch it with --enable-deterministic-inference")}
    endpoints = {COMPLETIONS: MANIFEST.endpoints[COMPLETIONS] | seed}
    if plan.chat_template or options.get("chat_template") or has_chat_template(plan.artifact.path):
        why = no("launch it with --tool-call-parser NAME")
        tools = {} if options.get("tool_call_parser") else {"tools": why, "tool_choice": why}
        endpoints[CHAT] = MANIFEST.endpoints[CHAT] | seed | tools
    return Manifest(endpoints=endpoints)


def _spread_by(plan: LaunchPlan) -> tuple[str, ...]:
    """With attention in data parallel, the tensor parallel devices do both."""
    names = ("tensor_parallel_size", "pipeline_parallel_size")
    return names if plan.options.get("enable_dp_attention") else (*names, "data_parallel_size")


def _slots(plan: LaunchPlan) -> int:
    return count(NAME, plan.options, "max_running_requests") or (GPU_SLOTS if plan.devices else plan.limits.batch_size)
