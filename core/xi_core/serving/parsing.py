"""Which parsers read a token engine's answer, and what of an answer is written before the model goes on. Used by `TokenService`.

Reasoning is told apart first, tool calls are read from what is left. Where a call is required, its beginning is put behind the prompt and
fed to the parsers, as though the model had written it: what the model then writes goes on from there.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from xi_core.api.openai import NamedTool
from xi_core.engine.base import LoadedModel
from xi_core.errors import InvalidRequest
from xi_core.importing import import_path
from xi_core.serving.parser import OutputParser, Parsed
from xi_core.serving.request import CHAT, Job
from xi_core.wire.manifest import Manifest, limited, no
from xi_core.wire.plan import LaunchPlan

END = 256
"""Characters of the prompt's end that parsers see."""

_NO_PARSER = no("no tool parser is known for this model, so that calls could not be told from text; launch it with --tool-parser")
_FREE = limited("none", "auto", reason="this model's tool parser can't begin a call")


class Prompt(Struct):
    """A prompt as it goes to the engine. `opening`: the part of it that already belongs to the answer."""

    ids: list[int]
    end: str = ""
    opening: str = ""


class Chain(OutputParser):
    """A reasoning parser, then a tool parser on the content that is left; either may be missing.

    Without `calls` no call may come out: what a parser takes for one is shown as content.
    """

    def __init__(self, reasoning: OutputParser | None, tool: OutputParser | None, *, calls: bool) -> None:
        self._parsers = [parser for parser in (reasoning, tool) if parser is not None]
        self._calls = calls

    def begin(self, prompt: str) -> None:
        for parser in self._parsers:
            parser.begin(prompt)

    def feed(self, text: str) -> Parsed:
        return self._run(text, ended=False)

    def finish(self) -> Parsed:
        return self._run("", ended=True)

    def _run(self, text: str, *, ended: bool) -> Parsed:
        out = Parsed(content=text)
        for parser in self._parsers:
            found = parser.feed(out.content) if out.content else Parsed()
            if ended:
                found = joined(found, parser.finish())
            out = Parsed(found.content, out.reasoning + found.reasoning, [*out.tool_calls, *found.tool_calls])
        if not self._calls:
            out.content += "".join(call.arguments for call in out.tool_calls)
            out.tool_calls = []
        return out


def joined(one: Parsed, other: Parsed) -> Parsed:
    """What two pieces of text came to, one after the other; a call that goes on stays one piece."""
    calls = [msgspec.structs.replace(call) for call in one.tool_calls]
    for call in other.tool_calls:
        if calls and call.name is None and calls[-1].index == call.index:
            calls[-1].arguments += call.arguments
        else:
            calls.append(call)
    return Parsed(one.content + other.content, one.reasoning + other.reasoning, calls)


class Parsers:
    """The parser classes that a plan names."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._tool = _class(plan, "tool")
        self._reasoning = _class(plan, "reasoning")
        found = [kind.specials for kind in (self._tool, self._reasoning) if kind is not None]
        self.specials = frozenset(name for names in found for name in names)
        """Special tokens whose text the parsers want to see."""

    def chain(self, job: Job, prompt: Prompt) -> OutputParser | None:
        """The parser of one choice; None where all text is content."""
        if job.kind != "chat":
            return None
        reasoning = self._reasoning() if self._reasoning is not None else None
        tool = self._tool() if self._tool is not None and job.tools else None
        if reasoning is None and tool is None:
            return None
        chain = Chain(reasoning, tool, calls=bool(job.tools))
        chain.begin(prompt.end)
        return chain

    def opening(self, job: Job, prompt: str) -> str:
        """What the answer begins with, behind the rendered `prompt`. Raises `InvalidRequest` where a call can't be begun."""
        choice = job.chat.tool_choice if job.tools else None
        forced = ""
        if isinstance(choice, NamedTool) or choice == "required":
            forced = self._forced(job, choice.function.name if isinstance(choice, NamedTool) else None, prompt)
        if not forced and job.grammar is None:
            return ""
        return self._skip(prompt) + forced

    def _forced(self, job: Job, name: str | None, prompt: str) -> str:
        if job.grammar is not None:
            raise InvalidRequest(
                f"tool_choice requires a call, and {job.grammar.param} another form of the answer; leave one of them out",
                param="tool_choice",
            )
        if name is None and len(job.tools or []) == 1:
            name = job.chat.tools[0].function.name if job.chat.tools else None
        forced = None
        if self._tool is not None:
            parser = self._tool()
            parser.begin(prompt[-END:])
            forced = parser.force(name)
        if forced is None:
            raise InvalidRequest(f"tool_choice: this model's tool parser can't begin a call of '{name}'", param="tool_choice")
        return forced

    def _skip(self, prompt: str) -> str:
        """What ends the thinking, where the prompt has opened it or the model would."""
        if self._reasoning is None:
            return ""
        parser = self._reasoning()
        parser.begin(prompt[-END:])
        return parser.skip()

    def served(self, model: LoadedModel) -> LoadedModel:
        """The model as it is served: tools need a tool parser, and a required call one that can begin it."""
        fields = model.manifest.endpoints.get(CHAT, {})
        chat = dict(fields)
        if self._tool is None:
            chat |= {name: _NO_PARSER for name in ("tools", "tool_choice") if name in fields}
        elif "tool_choice" in fields and fields["tool_choice"].state == "yes" and self._tool().force("name") is None:
            chat["tool_choice"] = _FREE
        if chat == fields:
            return model
        manifest = Manifest(endpoints={**model.manifest.endpoints, CHAT: chat})
        return msgspec.structs.replace(model, manifest=manifest)


def thinking_variables(plan: LaunchPlan) -> dict[str, Any]:
    """What `--enable-thinking` means to chat templates: most read the first name, those of DeepSeek the second."""
    return {} if plan.enable_thinking is None else {"enable_thinking": plan.enable_thinking, "thinking": plan.enable_thinking}


def _class(plan: LaunchPlan, kind: str) -> type[OutputParser] | None:
    found: type[OutputParser] | None = import_path(plan.parsers[kind]) if kind in plan.parsers else None
    return found
