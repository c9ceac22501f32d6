"""`LLM`: a model in a Python program, as in vLLM's guide. Users' programs make it; `xi batch --offline` does too."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec

from xi_core.api.control import LaunchSpec
from xi_core.api.openai import ChatCompletion, Completion
from xi_core.config import settings
from xi_core.engine.info import EngineInfo
from xi_core.errors import InvalidRequest, LaunchError
from xi_core.offline.outputs import RequestOutput, of_chat, of_completion
from xi_core.offline.private import PrivateModel
from xi_core.offline.progress import progress
from xi_core.offline.sampling import CHAT, COMPLETIONS, SamplingParams

Prompt: TypeAlias = str | list[int] | Mapping[str, Any]
"""A text, token ids, or as vLLM has it `{"prompt": text}` or `{"prompt_token_ids": ids}`."""
Conversation: TypeAlias = Sequence[Mapping[str, Any]]
Sampling: TypeAlias = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or one for each. None: the model's own defaults, and 16 tokens."""

FIXED = ("model_name", "model_uid", "model_type", "model_engine", "replica", "options")
"""Fields of the launch that an `LLM` sets itself. An option that is another of its fields is the launch's; all others are the engine's."""
SHARDS = "tensor_parallel_size"


class LLM:
    """A model on this machine, for this process only: no server, no port.

    `model` is a known name, a directory or a `.gguf` file; `engine` a name from `xi engines`, or None for the best that can. `options` are
    those of `xi launch`, the engine's own among them (`context_length=2048`). A context manager; `close` ends the replica, and so does the
    end of the program. Methods may be called from several threads.
    """

    def __init__(self, model: str, engine: str | None = None, tensor_parallel_size: int = 1, **options: Any) -> None:
        """Load the model. Raises `LaunchError` and its kinds (`UnknownModel`, `EngineNotInstalled`, `UnknownOption`, `LaunchFailed`, …)."""
        spec = _spec(model, engine, options)
        if not isinstance(tensor_parallel_size, int) or tensor_parallel_size < 1:
            raise InvalidRequest(f"{SHARDS} is {tensor_parallel_size!r}; it is a number of devices, 1 or more", param=SHARDS)
        self.model = model
        self._private = PrivateModel(settings())
        self._end = weakref.finalize(self, self._private.close)
        try:
            if tensor_parallel_size > 1:
                spec = self._sharded(spec, tensor_parallel_size)
            self.engine = self._private.launch(spec).engine
        except BaseException:  # Ctrl-C too: nobody could close what was never made
            self.close()
            raise

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling_params: Sampling = None, *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Continue each prompt; the outputs are in the order of the prompts.

        `use_tqdm`: draw a progress bar, if stderr is a terminal. The first prompt that is refused ends all: its error is raised
        (`InvalidRequest`, `ContextLengthExceeded`, `UnsupportedField`, …) and tells its place. Ctrl-C stops the work and leaves the model.
        """
        given = [_prompt(prompt) for prompt in ([prompts] if _is_one(prompts) else prompts)]
        bodies = [{"prompt": prompt} for prompt in given]
        answers = self._ask(COMPLETIONS, bodies, sampling_params, use_tqdm)
        decoder = msgspec.json.Decoder(Completion)
        return [of_completion(prompt, decoder.decode(answer)) for prompt, answer in zip(given, answers, strict=True)]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Sampling = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer a conversation, a list of messages, or several of them. Otherwise as `generate`."""
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if one else list(messages)
        bodies = [{"messages": list(conversation), **({"tools": tools} if tools else {})} for conversation in conversations]
        decoder = msgspec.json.Decoder(ChatCompletion)
        return [of_chat(decoder.decode(answer)) for answer in self._ask(CHAT, bodies, sampling_params, use_tqdm)]

    def ask(self, route: str, body: bytes) -> bytes:
        """The answer to one request of the HTTP API, not streamed: what the server would answer with status 200. Raises what it refuses."""
        return self._private.ask(route, body)

    def close(self) -> None:
        """End the replica. Idempotent."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _ask(self, route: str, bodies: list[dict[str, Any]], sampling: Sampling, bar: bool) -> list[bytes]:
        cells = self._private.hub.engines.get(self.engine).manifest.endpoints.get(route, {})
        params = [sampling] * len(bodies) if sampling is None or isinstance(sampling, SamplingParams) else list(sampling)
        if len(params) != len(bodies):
            raise InvalidRequest(f"{len(params)} SamplingParams for {len(bodies)} prompts; give one for each, or one for all")
        length, encode = self._private.context_length, msgspec.json.Encoder().encode
        raw = [
            encode({"model": self._private.uid, **body, **(one.body(route, cells, length) if one else {"max_tokens": 16})})
            for body, one in zip(bodies, params, strict=True)
        ]
        with progress(len(raw), bar) as on_done:
            return self._private.ask_all(route, raw, on_done)

    def _sharded(self, spec: LaunchSpec, size: int) -> LaunchSpec:
        """The spec for an engine that spreads the model over `size` devices. Raises `LaunchError` where none can."""
        engines = self._private.hub.engines
        if spec.model_engine:
            taking = [engines.get(spec.model_engine, param="engine")]
        else:
            found = self._private.engines(spec.model_path or spec.model_name)
            taking = sorted((engines.get(e.name) for e in found if e.available and e.model == "yes"), key=lambda e: -e.priority)
        able = next((engine for engine in taking if _shards(engine)), None)
        if taking and able is None:
            names = ("engines " if len(taking) > 1 else "engine ") + " and ".join(engine.name for engine in taking)
            raise LaunchError(
                f"{names} can't spread a model over devices, so {SHARDS} can't be {size}; leave it out, or name an engine that can",
                param=SHARDS,
            )
        if able is None:
            return spec  # nothing takes it: the launch says why
        return msgspec.structs.replace(spec, model_engine=able.name, options={**spec.options, SHARDS: size})


def _shards(engine: EngineInfo) -> bool:
    """Whether an engine has the option; one whose own parser knows the options may have it."""
    return engine.options is None or any(field.name == SHARDS for field in msgspec.structs.fields(engine.options))


def _spec(model: str, engine: str | None, options: dict[str, Any]) -> LaunchSpec:
    ours = {name: options.pop(name) for name in set(options) & set(LaunchSpec.__struct_fields__) - set(FIXED)}
    try:
        return msgspec.convert({"model_name": model, "model_engine": engine, "options": options, **ours}, LaunchSpec)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"LLM: {error}") from None


def _is_one(prompts: Prompt | Sequence[Prompt]) -> bool:
    return isinstance(prompts, str | Mapping) or (bool(prompts) and all(isinstance(one, int) for one in prompts))


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, Mapping):
        prompt = prompt.get("prompt_token_ids") or prompt.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and prompt and all(isinstance(one, int) for one in prompt):
        return list(prompt)
    raise InvalidRequest(f"a prompt is a text or a list of token ids, not {str(prompt)[:80]!r}", param="prompts")
