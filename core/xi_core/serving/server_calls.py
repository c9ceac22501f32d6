"""Tool calls of servers that hold an answer to a grammar in llguidance's dialect and read calls by parsers of their own: vLLM, SGLang.

What such a server does by itself where a call is required, or a tool is strict, wants another library than llguidance, or gives arguments
that are no JSON. So xi says in the grammar what the answer must look like, in the form that the server's parser reads, and asks for a free
choice, under which it does read calls. Called by engines, per request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from xi_core.api.openai import Tool
from xi_core.engine.grammar import Grammar
from xi_core.engine.lark import checked_lark
from xi_core.errors import InvalidRequest, UnsupportedField
from xi_core.serving.calls import Calls, check_name
from xi_core.serving.parser import CallForm

HERMES = CallForm(
    before='<tool_call>\n{"name": "', middle='", "arguments": ', after="}\n</tool_call>", between="\n", trigger="<tool_call>",
)  # fmt: skip
LLAMA3 = CallForm(before='{"name": "', middle='", "parameters": ', after="}", between="; ", first="{")
PYTHONIC = CallForm(begin="[", before="", middle="(", after=")", between=", ", end="]", python=True, first="[")


def server_calls(body: dict[str, Any], form: CallForm | None, specials: Mapping[str, int]) -> tuple[dict[str, Any], str]:
    """`body` as the server gets it, and the grammar of the answer; empty where the request leaves that free.

    `form` is how the server's parser has calls written, None where nobody knows; `specials` are tokens that a grammar can't spell.
    Raises `InvalidRequest`, `UnsupportedField`, naming the place in the request.
    """
    if not body.get("tools"):
        return body, ""
    grammar = _grammar(body, form, specials)
    text = "" if grammar is None else checked_lark(grammar, specials.get)
    rest = {name: value for name, value in body.items() if name not in ("tool_choice", "parallel_tool_calls")}
    return {**rest, "tools": [_unbound(tool) for tool in body["tools"]], "tool_choice": "auto"}, text


def _grammar(body: dict[str, Any], form: CallForm | None, specials: Mapping[str, int]) -> Grammar | None:
    choice, one = body.get("tool_choice"), body.get("parallel_tool_calls") is False
    name = choice["function"]["name"] if isinstance(choice, dict) else None
    forced = name is not None or choice == "required"
    tools = [(place, msgspec.convert(tool, Tool)) for place, tool in enumerate(body["tools"])]
    strict = next((place for place, tool in tools if tool.function.strict), None)
    if not forced and strict is None:
        return None
    if form is None:
        param = "tool_choice" if forced else f"tools[{strict}].function.strict"
        raise UnsupportedField(f"{param}: calls can't be held to a form, for that of this launch's tool parser is not known", param=param)
    if not forced and not (form.trigger or form.first):
        param = f"tools[{strict}].function.strict"
        raise UnsupportedField(
            f"{param}: calls in free text can't be held to a schema, for the form of this launch's tool parser tells none from text",
            param=param,
        )
    tools = [(place, tool) for place, tool in tools if name in (None, tool.function.name)]
    if form.python:
        for place, tool in tools:
            check_name(tool.function.name, place, dotted=False)  # the servers' parsers read none, unlike ours
    if not forced:
        return replace(Calls(form, tools, frozenset(specials)).triggered(one=one), param="tools")
    if body.get("ignore_eos"):
        raise InvalidRequest("ignore_eos and tool_choice: an answer that is a call must end", param="ignore_eos")
    return replace(Calls(form, tools, frozenset(specials)).forced("", one=one or name is not None), param="tool_choice")


def _unbound(tool: dict[str, Any]) -> dict[str, Any]:
    """Without `strict`, which the grammar has seen to."""
    return {**tool, "function": {name: value for name, value in tool["function"].items() if name != "strict"}}
