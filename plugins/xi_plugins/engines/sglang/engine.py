"""`SglangEngine`: SGLang's own OpenAI server as a child process. Imported in the replica only; SGLang itself is loaded in the child alone.

Options are checked by the real `ServerArgs` when the child starts (start.py), so that no second import of SGLang is paid for.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, ClassVar

from xi_core.engine.base import ApiRequest, LoadedModel
from xi_core.engine.child_address import Address
from xi_core.engine.child_options import cause, complaint, too_long
from xi_core.engine.child_server import ChildServerEngine, ServerCall, ServerCommand
from xi_core.engine.child_sharding import threads_in_quota
from xi_core.engine.child_translate import to_server
from xi_core.errors import EngineError, EngineNotInstalled, XiError
from xi_core.models.inspect import has_chat_template
from xi_core.models.special_tokens import added_tokens, special_of
from xi_core.serving.parser import CallForm
from xi_core.wire.manifest import STRUCTURED_FIELDS, TOOL_FIELDS, Ability, Manifest, limited, no
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.sglang import sleeping
from xi_plugins.engines.sglang.command import GRAMMARS, command_line, rank_environment, slots_of
from xi_plugins.engines.sglang.plugin import CALL_FORMS, INSTALL, MANIFEST, NAME, UNKNOWN_FORM
from xi_plugins.engines.sglang.start import KEY
from xi_plugins.engines.sglang.structured import with_grammar
from xi_plugins.engines.sglang.tokens import MARK, check_ids, vocabulary_size, without_cut, without_special

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_LOGPROBS = b'"logprobs":{'
_MARKS = (MARK.encode(), b"\\ufffd")
_TOO_MANY = re.compile(rb"maximum context length of (\d+) tokens.*?: (\d+) tokens from the input")
_STAGES = {"Load weight begin": "loading weights", "Load weight end": "preparing the cache", "Capture cuda graph": "capturing CUDA graphs"}
_WORK = ("Prefill batch", "Decode batch")
"""In a line for each part of a prompt, and for every 40th token: its scheduler writes them where `log_level` is not above info."""


class SglangEngine(ChildServerEngine):
    """Runs one Hugging Face model. See `ChildServerEngine` for who calls what."""

    name = NAME
    embedding: ClassVar[bool] = False
    """Whether the model gives vectors."""
    unix_socket = False  # it has no option for one

    def __init__(self) -> None:
        super().__init__()
        self._special: frozenset[str] = frozenset()
        self._held: dict[int, dict[str, str]] = {}
        """Marks by the requests whose last events ended in them (`without_cut`)."""
        self._marks: dict[str, int] = {}
        """Tokens that can't be spelled out in a grammar."""
        self._vocabulary: int | None = None
        self._form: CallForm | None = None
        """How calls are written; None where xi doesn't know it, or the launch has no grammars in llguidance's dialect."""

    def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
        added = added_tokens(plan.artifact.path)
        self._special, self._vocabulary = frozenset(special_of(added)), vocabulary_size(plan.artifact.path)
        self._form, self._marks = call_form(plan), special_of(added, bracketed=True)
        template = None
        if plan.chat_template is not None and "chat_template" not in plan.options:
            template = address.write("chat_template.jinja", plan.chat_template)
        argv = command_line(plan, port=address.port, template=template, embedding=self.embedding)
        return ServerCommand(argv=argv, env=_environment(address), defaults=_defaults(plan))

    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        return LoadedModel(
            context_length=card["max_model_len"], slots=slots_of(plan), manifest=manifest_for(plan), sleep=sleeping.ability(plan)
        )

    def body(self, request: ApiRequest) -> dict[str, Any]:
        check_ids(request.body.get("prompt", ()), self._vocabulary, "prompt")
        body = with_grammar(to_server(request), self._form, self._marks)
        adapter = {"lora_path": request.adapter} if request.adapter is not None else {}
        return {**body, **adapter, "top_k": body.get("top_k") or -1}

    def second_body(self, request: ApiRequest, data: bytes) -> dict[str, Any] | None:
        """SGLang refuses a max_tokens that doesn't fit beside the prompt, where xi's answers are cut to the context."""
        found = _TOO_MANY.search(data)
        if found is None or (room := int(found[1]) - int(found[2])) < 1:
            return None
        return {**self.body(request), "max_tokens": room}

    def event(self, request: ApiRequest, data: bytes) -> bytes:
        found = super().event(request, data)
        held = self._held.pop(request.id, {})
        if held or any(mark in found for mark in _MARKS):
            found = without_cut(found, held)
        if held:
            self._held[request.id] = held
        return without_special(found, self._special) if _LOGPROBS in found else found

    def ended(self, request: ApiRequest) -> None:
        self._held.pop(request.id, None)

    def sleep_calls(self, level: int) -> list[ServerCall]:
        return sleeping.sleep_calls()

    def wake_calls(self, level: int) -> list[ServerCall]:
        return sleeping.wake_calls()

    def stage(self, line: str) -> tuple[str, float | None] | None:
        return next(((stage, None) for sign, stage in _STAGES.items() if sign in line), None)

    def works(self, line: str) -> bool:
        return any(sign in line for sign in _WORK)

    def failed_start(self, how: str, lines: list[str]) -> XiError:
        if (wrong := complaint(NAME, how, lines)) is not None:
            return wrong
        why = cause(lines)
        if "No module named 'sglang" in why:
            return EngineNotInstalled(f"SGLang can't be imported: {why}; install it with: {INSTALL}")
        if (wrong := too_long(why, "context_length")) is not None:
            return wrong
        return EngineError(f"SGLang {how} while it started: {why}") if why else super().failed_start(how, lines)


def manifest_for(plan: LaunchPlan) -> Manifest:
    """What this launch honours: chat needs a template; tools, seeds and structured output each an option of the launch."""
    options, closed = plan.options, dict[str, Ability]()
    if not options.get("enable_deterministic_inference"):
        closed["seed"] = no("launch it with --enable-deterministic-inference")
    if (wanting := _no_grammars(plan)) is not None:
        closed |= dict.fromkeys(STRUCTURED_FIELDS, no(wanting))
    endpoints = {COMPLETIONS: MANIFEST.endpoints[COMPLETIONS] | closed}
    if plan.chat_template or options.get("chat_template") or has_chat_template(plan.artifact.path):
        endpoints[CHAT] = MANIFEST.endpoints[CHAT] | closed | _tools(plan)
    return Manifest(endpoints=endpoints)


def _tools(plan: LaunchPlan) -> dict[str, Ability]:
    """What of tools this launch hasn't."""
    if not plan.options.get("tool_call_parser"):
        return dict.fromkeys(TOOL_FIELDS, no("launch it with --tool-call-parser NAME"))
    return {} if call_form(plan) else {"tool_choice": limited("none", "auto", reason=_no_grammars(plan) or UNKNOWN_FORM)}


def _no_grammars(plan: LaunchPlan) -> str | None:
    """Why answers can't be held to grammars in llguidance's dialect; None where they can."""
    if plan.options.get("grammar_backend", GRAMMARS) != GRAMMARS:
        return f"launch it with --grammar-backend {GRAMMARS}"
    return "llguidance is not installed beside SGLang" if find_spec("llguidance") is None else None


def call_form(plan: LaunchPlan) -> CallForm | None:
    """How calls are written in this launch, where an answer can be held to it."""
    return CALL_FORMS.get(str(plan.options.get("tool_call_parser"))) if _no_grammars(plan) is None else None


def _environment(address: Address) -> dict[str, str]:
    """The key, and log-probabilities of the model's own distribution, which SGLang would tell of the tempered one."""
    return {KEY: address.key, "SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}


def _defaults(plan: LaunchPlan) -> dict[str, str]:
    """Nothing from hubs: the artifact is on the disk. Without devices, SGLang's platform is the CPU."""
    on_cpu = {} if plan.devices else {"SGLANG_USE_CPU_ENGINE": "1", **threads_in_quota(plan)}
    return {"HF_HUB_OFFLINE": "1", **on_cpu, **rank_environment(plan)}
