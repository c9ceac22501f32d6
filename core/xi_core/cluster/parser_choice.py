"""Which parsers a launch's answers go through, and whether its model can think as asked. Called by `resolve`."""

from __future__ import annotations

import msgspec

from xi_core.api.control import LaunchSpec
from xi_core.engine.info import EngineInfo
from xi_core.errors import LaunchError
from xi_core.models.family import ModelSpec
from xi_core.plugins import Registry
from xi_core.serving.parser import ParserInfo

NONE = "none"
"""The name that means no parser, where the model has one."""


def with_parsers(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo, known: Registry[ParserInfo]) -> ModelSpec:
    """`model` with the parsers that `spec` names instead of its own. Raises `LaunchError` for what can't be had."""
    tool = _parser("tool", spec.tool_parser, model.tool_parser, model, engine, known)
    reasoning = _parser("reasoning", spec.reasoning_parser, model.reasoning_parser, model, engine, known)
    return msgspec.structs.replace(model, tool_parser=tool, reasoning_parser=reasoning)


def _parser(kind: str, asked: str | None, own: str | None, model: ModelSpec, engine: EngineInfo, known: Registry[ParserInfo]) -> str | None:
    names = [info.name for info in known if info.kind == kind]
    if asked is None:
        if own is not None and known.find(own) is None:
            raise LaunchError(f"model {model.name} needs the {kind} parser '{own}', which no plugin offers; see `xi plugins`")
        return own
    param = f"{kind}_parser"
    if engine.own_parsers:
        raise LaunchError(f"engine {engine.name} parses its answers itself; leave --{kind}-parser out, or name another engine", param=param)
    if asked.lower() == NONE:
        return None
    found = known.find(asked)
    if found is None or found.kind != kind:
        raise LaunchError(f"unknown {kind} parser '{asked[:100]}'; known: {', '.join(names)}, {NONE}", param=param)
    return found.name


def check_thinking(spec: LaunchSpec, model: ModelSpec, engine: EngineInfo) -> None:
    """Raises `LaunchError` where the model's thinking can't be switched as `spec` asks for."""
    if spec.enable_thinking is None:
        return
    cells = [fields["chat_template_kwargs"] for fields in engine.manifest.endpoints.values() if "chat_template_kwargs" in fields]
    if all(cell.state == "no" for cell in cells):
        raise LaunchError(f"engine {engine.name} can't switch thinking on or off; leave enable_thinking out", param="enable_thinking")
    thinks, switches = "reasoning" in model.abilities, "hybrid" in model.abilities
    if switches or (not thinks and not spec.enable_thinking):
        return
    why = "always thinks" if thinks else "does not think"
    raise LaunchError(
        f"model {model.name} {why}: its chat template has no switch for it; leave enable_thinking out", param="enable_thinking"
    )
