"""Which parsers read a token engine's answer, and what of an answer is written before the model goes on. Used by `TokenService`.

Reasoning is told apart first, tool calls are read from what is left. Where a call is required, and nothing is thought before it, its
beginning is put behind the prompt and fed to the parsers, as though the model had written it: what the model then writes goes on from
there. What the model writes is held to a grammar where the request asks for a form, requires a call or has strict tools.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from xi_core.api.openai import NamedTool, Tool
from xi_core.engine.base import LoadedModel
from xi_core.engine.grammar import Grammar
from xi_core.errors import EngineError, InvalidRequest, UnsupportedField
from xi_core.importing import import_path
from xi_core.serving.calls import Calls, after_thought
from xi_core.serving.parser import CallForm, OutputParser, Parsed, Thought
from xi_core.serving.request import CHAT, Job
from xi_core.wire.manifest import STRUCTURED_FIELDS, TOOL_FIELDS, Manifest, limited, no
from xi_core.wire.plan import LaunchPlan

END = 256
"""Characters of the prompt's end that parsers see."""

THINKING = ("enable_thinking", "thinking")
"""Variables by which chat templates are told whether to think."""
_NO_PARSER = no("no tool parser is known for this model, so that calls could not be told from text; launch it with --tool-parser")
_FREE = limited("none", "auto", reason="this model's tool parser can't begin a call")


class Prompt(Struct):
    """A prompt as it goes to the engine. `opening`: the part of it that already belongs to the answer."""

    ids: list[int]
    end: str = ""
    opening: str = ""
    grammar: Grammar | None = None
    """What the answer behind it must look like."""


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
    calls = [replace(call) for call in one.tool_calls]
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
        self._binds = False

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

    def opening(self, job: Job, prompt: str) -> tuple[str, Grammar | None]:
        """What the answer begins with, behind the rendered `prompt`, and what the rest of it must look like.

        Raises `InvalidRequest` where a call can't be begun, or not held to what the request asks for.
        """
        choice = job.chat.tool_choice if job.tools else None
        if isinstance(choice, NamedTool) or choice == "required":
            return self._forced(job, choice.function.name if isinstance(choice, NamedTool) else None, prompt)
        if job.grammar is not None:
            thought = self._thought(job, prompt)
            grammar = after_thought(thought, self._lead(), job.grammar, self.specials)
            return ("" if thought else self._skip(prompt)), replace(grammar, param=job.grammar.param)
        if job.tools and any(tool.function.strict for tool in job.chat.tools or []):
            return "", self._triggered(job, prompt)
        return "", None

    def _forced(self, job: Job, name: str | None, prompt: str) -> tuple[str, Grammar | None]:
        if job.grammar is not None:
            raise InvalidRequest(
                f"tool_choice requires a call, and {job.grammar.param} another form of the answer; leave one of them out",
                param="tool_choice",
            )
        tools = [(place, tool) for place, tool in enumerate(job.chat.tools or []) if name in (None, tool.function.name)]
        forced, form = self._beginning(tools[0][1].function.name if len(tools) == 1 else None, prompt)
        if form is None:
            self._refuse_strict(tools)
            return self._skip(prompt) + forced, None
        if job.ignore_eos:
            raise InvalidRequest("ignore_eos and tool_choice: an answer that is a call must end", param="ignore_eos")
        calls = Calls(form, tools, self.specials)
        thought = self._thought(job, prompt)
        if thought is None:
            return self._skip(prompt) + forced, replace(calls.forced(forced, one=job.one_call), param="tool_choice")
        return "", replace(after_thought(thought, "", calls.forced("", one=job.one_call), self.specials), param="tool_choice")

    def _beginning(self, name: str | None, prompt: str) -> tuple[str, CallForm | None]:
        """How a call begins, and the form in which it goes on; None where it is left free."""
        forced = form = None
        if self._tool is not None:
            parser = self._tool()
            parser.begin(prompt[-END:])
            forced, form = parser.force(name), parser.form()
        if forced is None:
            raise InvalidRequest(f"tool_choice: this model's tool parser can't begin a call of '{name}'", param="tool_choice")
        return forced, form if self._binds else None

    def _triggered(self, job: Job, prompt: str) -> Grammar:
        """Free text in which calls, where the model makes any, are held to their tools' schemas."""
        tools = list(enumerate(job.chat.tools or []))
        _, form = self._beginning(None, prompt)
        if form is None or not (form.trigger or form.first):
            self._refuse_strict(tools)
            raise EngineError("strict tools were asked for, and there are none")
        grammar = Calls(form, tools, self.specials).triggered(one=job.one_call)
        return replace(after_thought(self._thought(job, prompt), "", grammar, self.specials), param="tools")

    def _refuse_strict(self, tools: list[tuple[int, Tool]]) -> None:
        place = next((place for place, tool in tools if tool.function.strict), None)
        if place is not None:
            why = "its tool parser doesn't tell how calls go on" if self._binds else "its engine has no grammars"
            raise UnsupportedField(
                f"tools[{place}].function.strict: calls of this model can't be held to a schema here: {why}; leave it out",
                param=f"tools[{place}].function.strict",
            )

    def _thought(self, job: Job, prompt: str) -> Thought | None:
        """The reasoning that comes first, if this request lets the model think."""
        if self._reasoning is None or any(job.variables.get(name) is False for name in THINKING):
            return None
        parser = self._reasoning()
        parser.begin(prompt[-END:])
        return parser.thought()

    def _lead(self) -> str:
        return self._reasoning().lead() if self._reasoning is not None else ""

    def _skip(self, prompt: str) -> str:
        """What ends the thinking, where the prompt has opened it or the model would."""
        if self._reasoning is None:
            return ""
        parser = self._reasoning()
        parser.begin(prompt[-END:])
        return parser.skip()

    def bind(self, manifest: Manifest) -> None:
        """Hold calls to their tools' schemas, where the engine has grammars."""
        cell = manifest.endpoints.get(CHAT, {}).get(STRUCTURED_FIELDS[0])
        self._binds = cell is not None and cell.state != "no"

    def served(self, model: LoadedModel) -> LoadedModel:
        """The model as it is served: tools need a tool parser, and a required call one that can begin it."""
        fields = model.manifest.endpoints.get(CHAT, {})
        self.bind(model.manifest)
        chat = dict(fields)
        if self._tool is None:
            chat |= {name: _NO_PARSER for name in TOOL_FIELDS if name in fields}
        elif "tool_choice" in fields and fields["tool_choice"].state == "yes" and self._tool().force("name") is None:
            chat["tool_choice"] = _FREE
        if chat == fields:
            return model
        manifest = Manifest(endpoints={**model.manifest.endpoints, CHAT: chat})
        return replace(model, manifest=manifest)


def thinking_variables(plan: LaunchPlan) -> dict[str, Any]:
    """What `--enable-thinking` means to chat templates: most read the first name, those of DeepSeek the second."""
    return {} if plan.enable_thinking is None else dict.fromkeys(THINKING, plan.enable_thinking)


def _class(plan: LaunchPlan, kind: str) -> type[OutputParser] | None:
    found: type[OutputParser] | None = import_path(plan.parsers[kind]) if kind in plan.parsers else None
    return found
