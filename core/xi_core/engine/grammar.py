"""What an answer must look like, and a compiler of that for token engines, over the library llguidance.

`Grammar` is plain data: the serving layer makes it of a request. A token engine that constrains its answers keeps one `GrammarCompiler`:

    compiler = GrammarCompiler(tokenizer, end_tokens)
    compiler.prepare(grammar)               # in `TokenEngine.prepare`: compiles, on a thread beside the engine's
    matcher = compiler.matcher(grammar)     # in `add`: cheap
    matcher.allowed()                       # before each choice of a token: a bit per token
    matcher.accept(token)                   # after it
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from xi_core.engine.lark import MOST_ITEMS, first_line, to_lark
from xi_core.errors import EngineError, InvalidRequest

if TYPE_CHECKING:
    from xi_core.engine.base import Tokenizer

log = logging.getLogger(__name__)

INSTALL = "pip install 'llguidance>=1.9,<2'"
_KEPT = 128
"""Compiled grammars that a compiler remembers."""
WORK = 1.0
"""Seconds of the processor that an answer's grammar may take, beside `WORK_OF_TOKEN` for each of its tokens. All rows of the batch wait for
each token's, and that of a grammar in which a text can be read in many ways grows with the cube of the text; schemas take a thousandth."""
WORK_OF_TOKEN = 0.01

Kind = Literal[
    "json_schema", "regex", "choice", "gbnf", "text", "special", "until", "free", "sequence", "one_of", "optional", "repeat", "listed"
]


class Grammar(Struct, frozen=True, kw_only=True):
    """A language that an answer must be in. The first four kinds are what a request may ask for; the others put them together."""

    kind: Kind
    text: str = ""
    """A JSON schema; a regular expression that the whole answer matches; a JSON list of texts; a grammar in GBNF, from rule `root`.

    `text`: this text. `special`: the special token of this name, or where there is none its text. `until`: any text up to the first time
    that this one comes, which belongs to it and may be a special token's name. `free`: any text.
    """
    parts: tuple[Grammar, ...] = ()
    """Of `sequence`: one after the other; of `one_of`: any of them; of `optional` and `repeat`: what may be missing, or come often.

    Of `listed`: a row with commas between; for each `text` has a `!`, or a `?` where it may be missing.
    """
    param: str = "structured_outputs"
    """The field of the request that it comes from, for errors."""


class Matcher:
    """Where one sequence is in its grammar. Used on the engine's thread only."""

    __slots__ = ("_ends", "_left", "_matcher", "_param")

    def __init__(self, matcher: Any, ends: frozenset[int], param: str, work: float = WORK) -> None:
        self._matcher = matcher
        self._ends = ends
        self._param = param
        self._left = work

    def allowed(self) -> bytes:
        """Which tokens may come next: bit `i % 8` of byte `i // 8` is token i. An end token is among them only where the answer may end.

        Raises `InvalidRequest` when the grammar wants more work than one token, or all so far, may cost.
        """
        began = time.thread_time()
        mask: bytes = self._matcher.compute_bitmask()
        self._left -= time.thread_time() - began - WORK_OF_TOKEN
        if self._matcher.is_error():
            why = first_line(self._matcher.get_error())
            raise InvalidRequest(f"{self._param}: the answer can't go on: {why}", param=self._param)
        if self._left < 0:
            why = "its text can be read in so many ways that each token takes long; make the grammar less ambiguous"
            raise InvalidRequest(f"{self._param}: the answer can't go on: {why}", param=self._param)
        return mask

    def accept(self, token: int) -> None:
        """Go on behind `token`, which must be an allowed one. If it can't, the next `allowed` raises."""
        if token not in self._ends:
            began = time.thread_time()
            self._matcher.consume_token(token)
            self._left -= time.thread_time() - began


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps them. `prepare` may be called on any thread, also on several.

    `timed`: whether an answer's grammar may only take so long. Not on several ranks, which must all come to the same end.

    Make it in the engine's `load`: the library reads a vocabulary of 150,000 tokens in a second, and no other Python thread runs meanwhile.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int], *, timed: bool = True) -> None:
        self._tokenizer = tokenizer
        self._work = WORK if timed else math.inf
        self._ends = frozenset(end for end in ends if 0 <= end < tokenizer.vocabulary_size)
        self._lock = threading.Lock()
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()
        self._vocabulary: Any = None
        self._problem = "the model names no end token, so that an answer that is complete could not end"
        with suppress(ImportError):
            import llguidance

            if self._ends:
                self._read(llguidance)

    def prepare(self, grammar: Grammar) -> None:
        """Compile a grammar, unless that is done. The library bounds the work.

        Raises `InvalidRequest`, with the grammar's `param`, where the grammar is wrong.
        """
        self._prototype(grammar)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the grammar's start; quick if the grammar is prepared."""
        return Matcher(self._prototype(grammar).deep_copy(), self._ends, grammar.param, self._work)

    def _prototype(self, grammar: Grammar) -> Any:
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
                return found
        made = self._compile(grammar)
        with self._lock:
            self._compiled[grammar] = made
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return made

    def _compile(self, grammar: Grammar) -> Any:
        library = _library()
        limits = library.LLParserLimits(verbose_errors=False, max_items_in_row=MOST_ITEMS, step_max_items=10 * MOST_ITEMS)
        if self._vocabulary is None:
            raise EngineError(self._problem)
        definition = library.LLMatcher.grammar_from_lark(to_lark(library, grammar, self._special))
        made = library.LLMatcher(self._vocabulary, definition, log_level=0, limits=limits)
        if made.is_error():
            raise InvalidRequest(f"{grammar.param}: {first_line(made.get_error())}", param=grammar.param)
        made.compute_bitmask()  # the costliest mask is often the first
        if made.is_error():
            raise InvalidRequest(f"{grammar.param}: too complex: {first_line(made.get_error())}", param=grammar.param)
        return made

    def _special(self, name: str) -> int | None:
        """The id of the special token of that name: one that has no text of its own."""
        ids = self._tokenizer.encode(name)
        return ids[0] if len(ids) == 1 and not self._tokenizer.token_bytes(ids[0]) else None

    def _read(self, library: Any) -> None:
        """Read the vocabulary. A model that the library can't take is served without grammars."""
        try:
            wrapper = library.TokenizerWrapper(_Vocabulary(self._tokenizer, self._ends))
            self._vocabulary = library.LLTokenizer(wrapper, n_vocab=self._tokenizer.vocabulary_size, eos_token=sorted(self._ends))
        except (ValueError, TypeError, RuntimeError) as error:
            self._problem = f"llguidance can't read the model's vocabulary: {error}"
            log.warning("no structured output: %s", self._problem)


class _Vocabulary:
    """A tokenizer in the form that llguidance asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocabulary_size)]
        self.special_token_ids = [token for token, data in enumerate(self.tokens) if not data or token in ends]
        for token in self.special_token_ids:
            self.tokens[token] = b"<xi_special_%d>" % token
        special = set(self.special_token_ids)
        self._ids = {data: token for token, data in reversed(list(enumerate(self.tokens))) if token not in special}
        self._longest = max(map(len, self._ids), default=1)
        self.eos_token_id = min(ends)

    def __call__(self, data: bytes) -> list[int]:
        """The tokens of a text that a grammar forces: as the model's tokenizer writes it, where that gives these very bytes."""
        try:
            ids = self._tokenizer.encode(data.decode())
        except UnicodeDecodeError:
            return self._greedy(data)
        return ids if b"".join(map(self._tokenizer.token_bytes, ids)) == data else self._greedy(data)

    def _greedy(self, data: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(data):
            for end in range(min(len(data), start + self._longest), start, -1):
                token = self._ids.get(data[start:end])
                if token is not None:
                    ids.append(token)
                    break
            else:
                return ids  # these bytes have no tokens; the library goes on from here by itself
            start = end
        return ids


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise EngineError(f"structured output needs llguidance ({error}); install it with: {INSTALL}") from None
    return llguidance
