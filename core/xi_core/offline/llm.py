"""`LLM`: a model in a Python program, as in vLLM's guide. Users' programs make it; `xi batch --offline` does too."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeAlias

import msgspec

from xi_core.api.body import encode_body
from xi_core.api.embeddings import EmbeddingList, RerankAnswer
from xi_core.api.openai import ChatCompletion, Completion
from xi_core.config import settings
from xi_core.errors import InvalidRequest
from xi_core.offline.launching import sizes_of, spec_of, spread
from xi_core.offline.outputs import (
    EmbeddingRequestOutput,
    RequestOutput,
    ScoringRequestOutput,
    of_chat,
    of_completion,
    of_embedding,
    of_rerank,
)
from xi_core.offline.private import PrivateModel
from xi_core.offline.progress import progress
from xi_core.offline.prompts import Conversation, Prompt, pairs_of, prompts_of
from xi_core.offline.sampling import CHAT, COMPLETIONS, SamplingParams

Sampling: TypeAlias = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or one for each. None: the model's own defaults, and 16 tokens."""
EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"


class LLM:
    """A model on this machine, for this process only: no server, no port.

    `model` is a known name, a directory or a `.gguf` file; `engine` a name from `xi engines`, or None for the best that can. `options` are
    those of `xi launch` (`n_gpu=2`, `replica=2`, `model_type="embedding"`), and the engine's own (`context_length=2048`), which the engine
    checks. A context manager; `close` ends the replica, and so does the end of the program. Methods may be called from several threads.
    """

    def __init__(
        self, model: str, engine: str | None = None, tensor_parallel_size: int = 1, pipeline_parallel_size: int = 1, **options: Any
    ) -> None:
        """Load the model. Raises `LaunchError` and its kinds (`UnknownModel`, `EngineNotInstalled`, `UnknownOption`, `LaunchFailed`, …)."""
        spec = spec_of(model, engine, options)
        sizes = sizes_of(tensor_parallel_size=tensor_parallel_size, pipeline_parallel_size=pipeline_parallel_size)
        self.model = model
        self._private = PrivateModel(settings())
        self._end = weakref.finalize(self, self._private.close)
        try:
            self.engine = self._private.launch(spread(spec, sizes, self._private)).engine
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
        given = prompts_of(prompts)
        answers = self._sample(COMPLETIONS, [{"prompt": prompt} for prompt in given], sampling_params, use_tqdm)
        decoder = msgspec.json.Decoder(Completion)
        return [of_completion(prompt, decoder.decode(answer)) for prompt, answer in zip(given, answers, strict=True)]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Sampling = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: str | dict[str, Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer a conversation, a list of messages, or several of them. Otherwise as `generate`.

        `tools`, `tool_choice` and `chat_template_kwargs` (`{"enable_thinking": False}`) are the API's fields, for all conversations.
        """
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: list[Any] = [messages] if one else list(messages)
        shared = {"tools": tools, "tool_choice": tool_choice, "chat_template_kwargs": dict(chat_template_kwargs or {})}
        fields = {name: value for name, value in shared.items() if value}
        bodies = [{"messages": list(conversation), **fields} for conversation in conversations]
        decoder = msgspec.json.Decoder(ChatCompletion)
        return [of_chat(decoder.decode(answer)) for answer in self._sample(CHAT, bodies, sampling_params, use_tqdm)]

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, dimensions: int | None = None, use_tqdm: bool = True
    ) -> list[EmbeddingRequestOutput]:
        """The vector of each text, of length 1, in their order; `dimensions`: only so many of its first numbers.

        For a model that was made with `model_type="embedding"`; any other raises `NotFound`.
        """
        given = prompts_of(prompts)
        fields = {} if dimensions is None else {"dimensions": dimensions}
        answers = self._ask(EMBEDDINGS, [{"input": prompt, **fields} for prompt in given], use_tqdm)
        decoder = msgspec.json.Decoder(EmbeddingList)
        return [of_embedding(place, prompt, decoder.decode(answers[place])) for place, prompt in enumerate(given)]

    def score(self, queries: str | Sequence[str], documents: str | Sequence[str], *, use_tqdm: bool = True) -> list[ScoringRequestOutput]:
        """How relevant each document is to the one query, or to its own where there are as many queries; in the documents' order.

        For a model that was made with `model_type="rerank"`; any other raises `NotFound`.
        """
        answers = self._ask(RERANK, [{"query": query, "documents": some} for query, some in pairs_of(queries, documents)], use_tqdm)
        decoder = msgspec.json.Decoder(RerankAnswer)
        return [output for answer in answers for output in of_rerank(decoder.decode(answer))]

    def ask(self, route: str, body: bytes) -> bytes:
        """The answer to one request of the HTTP API, not streamed: what the server would answer with status 200. Raises what it refuses."""
        return self._private.ask(route, body)

    def close(self) -> None:
        """End the replica. Idempotent."""
        self._end()

    def __enter__(self) -> Self:
        return self

    def __reduce__(self) -> Any:
        raise TypeError("an LLM can't be sent to another process; make one there")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _sample(self, route: str, bodies: list[dict[str, Any]], sampling: Sampling, bar: bool) -> list[bytes]:
        """The answers to requests for text, with token ids where the engine knows them."""
        cells = self._private.hub.engines.get(self.engine).manifest.endpoints.get(route, {})
        params = [sampling] * len(bodies) if sampling is None or isinstance(sampling, SamplingParams) else list(sampling)
        if len(params) != len(bodies):
            raise InvalidRequest(f"{len(params)} SamplingParams for {len(bodies)} prompts; give one for each, or one for all")
        cell, length = cells.get("return_token_ids"), self._private.context_length
        told = {"return_token_ids": True} if cell is not None and cell.state == "yes" else {}
        fields = [one.body(route, cells, length) if one else {"max_tokens": 16} for one in params]
        return self._ask(route, [{**body, **told, **more} for body, more in zip(bodies, fields, strict=True)], bar)

    def _ask(self, route: str, bodies: list[dict[str, Any]], bar: bool) -> list[bytes]:
        raw = [encode_body({"model": self._private.uid, **body}) for body in bodies]
        with progress(len(raw), bar) as on_done:
            return self._private.ask_all(route, raw, on_done)
