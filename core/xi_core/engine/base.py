"""The interfaces that an engine implements. One replica loads one engine, which loads one model.

A `TokenEngine` turns prompt ids into token ids, one step of its batch at a time; xi owns templates, stop strings, tools, reasoning and
`n`. An `ApiEngine` wraps something that speaks OpenAI's API already; xi validates, queues, fans out `n` and rewrites its events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, field

from xi_core.engine.grammar import Grammar
from xi_core.errors import InvalidRequest, UnsupportedField
from xi_core.wire.frames import EngineCounters
from xi_core.wire.manifest import Ability, Manifest
from xi_core.wire.plan import LaunchPlan
from xi_core.wire.sleep import NO_SLEEP

if TYPE_CHECKING:
    from xi_core.engine.rank_link import RankLink

Progress = Callable[[str, float | None], None]
"""Called by `load` with the name of a stage and the share of it that is done (0 to 1, None where unknown)."""

FinishReason = Literal["stop", "length"]


class LoadedModel(Struct, kw_only=True):
    """What `load` answers: the truth about the model in memory."""

    context_length: int
    """Most tokens of prompt and answer together."""
    slots: int
    """Most requests that run at once; xi queues the rest."""
    manifest: Manifest
    """May only narrow the descriptor's."""
    sleep: Ability = NO_SLEEP
    """Whether it can sleep: yes, limited to some levels (`limited("1")`), or no with what to do about it."""
    sampling: dict[str, Any] = {}
    """Of an `ApiEngine`: what the model's own files recommend for sampling fields that a request leaves open (as `default_sampling` of a
    `TokenEngine`)."""


class EngineStats(Struct, kw_only=True):
    """Counters of an engine. `steps` must move while requests run: that is how xi knows that the engine makes progress."""

    running: int = 0
    steps: int = 0
    tokens: int = 0
    prefilled: int = 0
    """Prompt tokens that went through the model, where the engine counts them."""
    reused: int = 0
    """Prompt tokens whose keys and values were there already."""
    own: EngineCounters | None = None
    """What the engine's library itself counts, for those who watch it; xi decides nothing by it."""


class Engine(ABC):
    """The life that every engine has. xi calls `load` once, then serves, then `close` once."""

    @abstractmethod
    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        """Load the artifact that `plan` names, blocking. Raises `ArtifactError`, `UnknownOption` or `EngineError`."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """Counters, cheap, from any thread."""

    def check(self) -> None:  # noqa: B027 - engines that can't break have nothing to check
        """Raise `EngineError` if the engine can't serve any more. Cheap, from any thread; called several times per second."""

    def sleep(self, level: int) -> None:
        """Give back the memory of the devices, blocking; only asked for a level that `LoadedModel.sleep` allows, while nothing runs.

        Level 1 keeps the weights in main memory, level 2 drops them. Nothing but `wake`, `check`, `stats` and `close` is called until it
        has woken. Runs on a thread of its own. Raises `EngineError` where it can't be used any more; any other `XiError` says that nothing
        has changed.
        """
        raise UnsupportedField(f"{type(self).__name__} can't sleep", param="level")

    def wake(self) -> None:
        """Be as before `sleep`, blocking, with the same weights. Runs on a thread of its own. Raises as `sleep` does."""
        raise UnsupportedField(f"{type(self).__name__} can't sleep", param="level")

    def close(self, grace: float) -> None:  # noqa: B027 - engines without resources have nothing to do
        """Free everything within `grace` seconds; requests may still run."""


# ---- token engines ------------------------------------------------------------------------------


class SamplingParams(Struct, kw_only=True, frozen=True):
    """How one sequence is sampled. Stop strings are not here: the serving layer matches them on text.

    Applied in this order: logit_bias, repetition/presence/frequency penalties, temperature (below 1e-5: greedy), top_k, top_p, min_p.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    """None: none. k: the chosen token's log-probability and those of the k likeliest,
    of the model's distribution before the steps above."""
    grammar: Grammar | None = None
    """What the answer must look like: only tokens that it allows, before the steps above, and an end token only where it may end."""
    adapter: str | None = None
    """Name of the LoRA module that answers, one of the plan's `lora_modules`; None: the model itself."""


class TokenLogprobs(Struct):
    """Log-probability of the chosen token, and of the likeliest ones, likeliest first."""

    logprob: float
    top: list[tuple[int, float]]


class TokenOut(Struct):
    """One new token of one sequence. `finish` is set on the last: `stop` (an end token, which has no text) or `length`."""

    id: int
    token: int
    finish: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    cached: int | None = None
    """With the first token, from engines that know: how many of the prompt's tokens they had not to read again."""


class SequenceError(Struct):
    """A sequence that failed alone; the others go on. Its slot is free."""

    id: int
    message: str
    status: int = 500
    param: str | None = None


class StepOutput(Struct):
    """What one step of the batch produced. A sequence in prefill may be in none."""

    tokens: list[TokenOut]
    errors: list[SequenceError] = field(default_factory=list)
    unbegun: list[int] = field(default_factory=list)
    """Of the batcher, where the engine has failed: sequences that it had not taken in."""


class Tokenizer(ABC):
    """Text to ids and back. Called on the replica's loop, not on the engine's thread; a long text on a thread beside it."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens written in it (`<|im_end|>`) become their ids."""

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a raw completion's prompt: as `encode`, after the begin token where the model wants one."""
        return self.encode(text)

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token adds to the text; empty for special tokens. A character may be split over several tokens."""

    def token_text(self, token: int) -> str:
        """A token's name for logprobs: its text, with undecodable bytes replaced."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def special_text(self, token: int) -> str:
        """How a special token is written (`<|channel|>`); empty for other tokens. Some parsers of output read it."""
        return ""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Ids are below this."""

    @property
    def chat_template(self) -> str | None:
        """Jinja source of the model's own chat template, if it has one."""
        return None

    @property
    def special_tokens(self) -> dict[str, str]:
        """Names that templates use: `bos_token`, `eos_token`, `pad_token`…"""
        return {}

    @property
    def starts_with_space(self) -> bool:
        """Whether the first token of a text carries a space that isn't part of it (SentencePiece)."""
        return False


class TokenEngine(Engine):
    """An engine that works on token ids and batches sequences itself. All but `load`, `stats`, `check` and `prepare` run on the batcher's
    thread."""

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The loaded model's tokenizer."""

    @property
    def rank_link(self) -> RankLink | None:
        """Of an engine that has loaded one rank's part of a model (`plan.rendezvous`): what joins the ranks. None: it holds all."""
        return None

    @property
    def default_sampling(self) -> dict[str, Any]:
        """Sampling values that the model's own files recommend, used where a request is silent."""
        return {}

    def prepare(self, grammar: Grammar) -> None:
        """Compile a grammar, for `add` to find. Called on a thread of its own before the sequences that name it are added.

        Raises `InvalidRequest` where the grammar is wrong. See `xi_core.engine.grammar.GrammarCompiler`, which does the work.
        """
        raise InvalidRequest("this engine has no grammars", param=grammar.param)

    @abstractmethod
    def has_capacity(self) -> bool:
        """Whether `add` would find a free slot."""

    @abstractmethod
    def add(self, id: int, prompt: list[int], sampling: SamplingParams) -> None:
        """Take a sequence into the batch; its tokens come from the next steps. Raises `InvalidRequest` for what it can't honour."""

    @abstractmethod
    def step(self) -> StepOutput:
        """One iteration: prefill what is new, decode one token of each running sequence. Finished sequences free their slots."""

    @abstractmethod
    def remove(self, id: int) -> None:
        """Drop a sequence and free its slot at once; unknown ids are ignored."""


# ---- API engines --------------------------------------------------------------------------------


class ApiRequest(Struct, kw_only=True):
    """One choice of a validated request: `n` and lists of prompts are fanned out already and the engine is always run streamed.

    `body` holds plain JSON values with xi's defaults filled in for every sampling field, so that no default of the engine's own counts.
    `stop` has the model's own strings beside the request's, and `stop_token_ids` is there where the model's family names such tokens:
    they end the answer, and their text is not part of it. `max_tokens`, where it is given, is the context's length at most.

    To an engine whose manifest serves `/v1/embeddings` or `/v1/rerank`, a request is a few inputs of one request of a client: `input`, a
    list of texts or of lists of token ids, and `encoding_format` base64; or `query` and `documents`, a list of texts. The answer goes to
    the sink as one event: OpenAI's with vectors of length 1, or `results` with `index` and `relevance_score`; `usage` in both. A failure
    may name an input by its place in the body, `input[3]`.
    """

    id: int
    route: str
    body: dict[str, Any]
    adapter: str | None = None
    """Name of the LoRA module that answers, one of the plan's `lora_modules`; None: the model itself."""


class ApiSink(ABC):
    """Where an ApiEngine puts what comes. Callable from any thread; events of one id in order."""

    @abstractmethod
    def event(self, id: int, data: bytes | str) -> None:
        """One whole JSON event of OpenAI's streaming form (`chat.completion.chunk` or `text_completion`), without SSE framing."""

    @abstractmethod
    def done(self, id: int) -> None:
        """The request has ended well."""

    @abstractmethod
    def failed(self, id: int, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        """The request has ended badly: 4xx where the request is at fault. `code` is one of `xi_core.errors`."""


class ApiEngine(Engine):
    """An engine with an OpenAI API of its own. xi never submits more requests than it has slots, so none waits inside it."""

    @abstractmethod
    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        """Start a request and return at once; everything else comes through `sink`, ending in `done` or `failed` exactly once."""

    @abstractmethod
    def abort(self, id: int) -> None:
        """Stop a request as soon as can be; `done` or `failed` still follows once its slot is free."""
