"""`VllmEngine`: vLLM's own OpenAI server as a child process. Imported in the replica only; vLLM itself is loaded in the child alone.

Options are checked by vLLM's own parser when the child starts: they are that version's, and no second import of vLLM is paid for.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from xi_core import machine
from xi_core.engine.base import ApiRequest, LoadedModel
from xi_core.engine.child_address import Address
from xi_core.engine.child_options import cause, complaint, count, flags, too_long
from xi_core.engine.child_server import ChildServerEngine, ServerCall, ServerCommand
from xi_core.engine.child_sharding import spread
from xi_core.errors import EngineError, EngineNotInstalled, UnknownOption, XiError
from xi_core.models.adapter import read_adapter
from xi_core.models.inspect import has_chat_template
from xi_core.models.special_tokens import special_tokens
from xi_core.serving.parser import CallForm
from xi_core.serving.server_calls import server_calls
from xi_core.wire.manifest import TOOL_FIELDS, Manifest, limited, no
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.vllm import sleeping
from xi_plugins.engines.vllm.calls import call_form, no_grammars
from xi_plugins.engines.vllm.plugin import INSTALL, MANIFEST, NAME, UNKNOWN_FORM
from xi_plugins.engines.vllm.ranks import HEADLESS, JOINED, follows, rank_defaults, rank_environment, rank_options

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
GPU_SLOTS = 256
"""Requests at once on a GPU, where the launch doesn't say; on a CPU it is XI_BATCH_SIZE."""
_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
_DEFAULTS = {
    "generation_config": "vllm",
    "uvicorn_log_level": "warning",
    "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
}
"""xi spells out every sampling field, what the model's files recommend included; the log needs no line per request; and a model
that has nothing to say would write blanks between the parts of JSON for ever."""
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_LORAS = 8
"""Most LoRA modules in one batch on a GPU, where the launch doesn't say (`--max-loras`): each has its room on the device."""
_METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache_usage": "vllm:kv_cache_usage_perc",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generated_tokens": "vllm:generation_tokens_total",
}
"""While a long prompt is read, `cache_usage` alone moves: each part of it takes blocks. The counts of tokens wait for its first token."""
_PICKLES = "VLLM_ALLOW_INSECURE_SERIALIZATION"
"""Never on, whatever `--env` of the launch says: with it vLLM reads pickles of others."""
_SOCKETS = "VLLM_RPC_BASE_PATH"
_LONGEST_FOLDER = 100 - 37
"""Characters: vLLM's sockets have names of 36, and a Unix socket's address has room for 104 to 108."""
_LIMIT = "VLLM_CPU_KVCACHE_SPACE"
_GIB = 2**30
_FOR_MINUS_ONE = 2**63 - 1
"""The seed in place of -1, by which vLLM means none."""
_SHARDS = re.compile(r"checkpoint shards:\s+(\d+)%")
_STAGES = {
    "Starting to load model": "loading weights",
    "Loading weights took": "preparing the cache",
    "torch.compile": "compiling",
    "Capturing CUDA graphs": "capturing CUDA graphs",
    "Starting vLLM": "starting to serve",
}
_WITH_DRAFTS = dict.fromkeys(("min_p", "logit_bias"), no("vLLM doesn't take it with --speculative-config"))
_NO_ROOM = re.compile(
    r"out of memory|(?:can't|cannot) allocate memory(?! in static TLS)|no available memory"
    r"|less than (?:desired|requested) (?:[CG]PU )?memory|larger than the available KV cache memory",
    re.IGNORECASE,
)
"""How vLLM and torch say that memory is too small. Others that name it don't: illegal access, shared memory of a kernel."""
_NO_CAUSE = (
    "Engine core initialization failed",
    "Engine process failed to start",
    "WorkerProc initialization failed",
    "Exception in worker",
)


class VllmEngine(ChildServerEngine):
    """Runs one Hugging Face model. See `ChildServerEngine` for who calls what."""

    name = NAME

    metrics = _METRICS

    def __init__(self) -> None:
        super().__init__()
        self._form: CallForm | None = None
        """How calls are written; None where xi doesn't know it, or the launch has no grammars in llguidance's dialect."""
        self._marks: dict[str, int] = {}
        """Tokens that can't be spelled out in a grammar."""

    def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
        self._form, self._marks = call_form(plan), special_tokens(plan.artifact.path, bracketed=True)
        options = {"served_model_name": plan.uid, **self._options(plan, address)}
        if follows(plan):
            argv = [sys.executable, "-P", str(HEADLESS), plan.artifact.path]
        else:
            argv = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", f"--model={plan.artifact.path}"]
            options |= {"uds": address.socket} if address.socket else {"host": "127.0.0.1", "port": address.port}
        argv += flags(options, negated=True)
        env = {"VLLM_API_KEY": address.key, _PICKLES: "0", **sleeping.environment(plan, address)}
        return ServerCommand(argv=argv, env=env, defaults=_environment(plan) | _sockets(address))

    def _options(self, plan: LaunchPlan, address: Address) -> dict[str, Any]:
        """vLLM's options, but for the model and the address. Raises `UnknownOption`, `ArtifactError`."""
        options = {**_DEFAULTS, **lora_options(plan), **rank_defaults(plan), "max_num_seqs": slots(plan), **plan.options}
        if plan.trust_remote_code:
            options["trust_remote_code"] = True
        options |= spread(NAME, plan, _PARALLEL) | rank_options(plan)
        if plan.chat_template is not None:
            options.setdefault("chat_template", address.write("chat_template.jinja", plan.chat_template))
        return options

    def body(self, request: ApiRequest) -> dict[str, Any]:
        r"""Calls by a grammar of xi's. vLLM's `\d`, `\w` and `\s` are Unicode's; here, as in xi's other engines, they are ASCII's."""
        body, calls = server_calls(super().body(request), self._form, self._marks)
        if body.get("seed") == -1:
            body = {**body, "seed": _FOR_MINUS_ONE}
        if calls:
            return {**body, "structured_outputs": {"grammar": calls}}
        outputs = body.get("structured_outputs") or {}
        if not outputs.get("regex"):
            return body
        return {**body, "structured_outputs": {**outputs, "regex": _ascii(outputs["regex"])}}

    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        return LoadedModel(
            context_length=card["max_model_len"], slots=slots(plan), manifest=manifest_for(plan), sleep=sleeping.ability(plan)
        )

    def sleep_calls(self, level: int) -> list[ServerCall]:
        return sleeping.sleep_calls(level)

    def wake_calls(self, level: int) -> list[ServerCall]:
        return sleeping.wake_calls(level)

    def stage(self, line: str) -> tuple[str, float | None] | None:
        if found := _SHARDS.search(line):
            return "loading weights", int(found[1]) / 100
        return next(((stage, None) for sign, stage in _STAGES.items() if sign in line), None)

    def joined(self, line: str) -> bool:
        return JOINED in line

    def failed_start(self, how: str, lines: list[str]) -> XiError:
        if (wrong := complaint(NAME, how, lines)) is not None:
            return wrong
        why = cause(lines, _NO_CAUSE)
        if "No module named 'vllm" in why:
            return EngineNotInstalled(f"vLLM can't be imported: {why}; install it with: {INSTALL}")
        if (wrong := too_long(why, "context_length", "max_model_len")) is not None:
            return wrong
        if _NO_ROOM.search(why):
            return EngineError(f"vLLM has too little memory: {why}")
        return EngineError(f"vLLM {how} while it started: {why}") if why else super().failed_start(how, lines)


def _ascii(expression: str) -> str:
    """The expression with ASCII's classes written out; vLLM refuses one that is none."""
    import llguidance  # vLLM brings it

    found: str = llguidance.regex_to_lark(expression, "dws")
    return found


def manifest_for(plan: LaunchPlan) -> Manifest:
    """What this launch honours: chat needs a template, and tools need a parser that the launch names; drafts exclude some fields."""
    found = _by_template(plan)
    if not any(name.replace("-", "_").partition(".")[0] == "speculative_config" for name in plan.options):
        return found
    return Manifest(endpoints={route: fields | _WITH_DRAFTS for route, fields in found.endpoints.items()})


def _by_template(plan: LaunchPlan) -> Manifest:
    if not (plan.chat_template or plan.options.get("chat_template") or has_chat_template(plan.artifact.path)):
        return Manifest(endpoints={COMPLETIONS: MANIFEST.endpoints[COMPLETIONS]})
    if not (plan.options.get("enable_auto_tool_choice") and plan.options.get("tool_call_parser")):
        tools = dict.fromkeys(TOOL_FIELDS, no("launch it with --enable-auto-tool-choice --tool-call-parser NAME"))
    elif call_form(plan) is None:
        tools = {"tool_choice": limited("none", "auto", reason=no_grammars(plan) or UNKNOWN_FORM)}
    else:
        return MANIFEST
    return Manifest(endpoints=MANIFEST.endpoints | {CHAT: MANIFEST.endpoints[CHAT] | tools})


def lora_options(plan: LaunchPlan) -> dict[str, Any]:
    """The options for the plan's LoRA modules; none without any. Raises `ArtifactError`, `UnknownOption`.

    By default vLLM takes ranks up to 16 and runs the requests of one module at a time. It takes some ranks only, as room for what is lower.
    """
    modules = plan.lora_modules
    if not modules:
        return {}
    rank = max(read_adapter(module).rank for module in modules)
    rooms = _lora_rooms(plan)
    return {
        "enable_lora": True,
        "lora_modules": [{"name": module.name, "path": module.path} for module in modules],
        "max_lora_rank": next((room for room in _LORA_RANKS if room >= rank), rank),
        "max_loras": rooms,
        "max_cpu_loras": max(rooms, len(modules)),
    }


def _lora_rooms(plan: LaunchPlan) -> int:
    """How many LoRA modules one batch may mix.

    On a CPU vLLM 0.32 reads the last room for requests that name no module, so that one has to stay empty: with a module in it, the
    model's own answers would be wrong beside those of modules.
    """
    given, number = count(NAME, plan.options, "max_loras"), len(plan.lora_modules)
    if plan.devices:
        return given or min(number, _LORAS)
    if given is not None and given <= number:
        raise UnknownOption(
            f"option 'max_loras' of engine {NAME} is {given}; on a CPU it must be above the number of LoRA modules, {number}, for vLLM to"
            " answer right beside them",
            param="max_loras",
        )
    return given or number + 1


def slots(plan: LaunchPlan) -> int:
    """Most requests that vLLM runs at once."""
    return count(NAME, plan.options, "max_num_seqs") or (GPU_SLOTS if plan.devices else plan.limits.batch_size)


def _sockets(address: Address) -> dict[str, str]:
    """Where its processes talk with each other: in the launch's own folder, for vLLM that is killed leaves its sockets behind."""
    return {_SOCKETS: address.folder} if len(address.folder) <= _LONGEST_FOLDER else {}


def _environment(plan: LaunchPlan) -> dict[str, str]:
    """Nothing from hubs: the artifact is on the disk.

    On a CPU, an eighth of the memory for the cache, and no more than half of what is free, 1 to 16 GiB.
    """
    found = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not plan.devices:
        room = machine.memory()
        found[_LIMIT] = str(min(16, max(1, min(room.total // 8, room.available // 2) // _GIB)))
    return found | rank_environment(plan)
