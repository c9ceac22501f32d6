"""One choice of a token engine's request: token ids in, deltas out. Detokenizes, matches stops, parses tools and reasoning."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from xi_core.api.openai import TokenLogprob, TopLogprob
from xi_core.engine.base import Tokenizer, TokenLogprobs, TokenOut
from xi_core.serving.delta import Delta
from xi_core.serving.parser import OutputParser, Parsed
from xi_core.serving.parsing import joined
from xi_core.serving.stops import StopMatcher

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON can't write."""


class Choice:
    """Text of a choice as it grows. A character whose bytes are split over tokens comes out whole, with its last byte.

    One that the answer's end cuts short does not come out at all, as in vLLM and llama.cpp. Stop strings are looked for in the text as
    it is generated, reasoning and the marks of calls included; special tokens have no text but for a parser that asks for theirs.
    With `one_call` the answer ends where the model begins a second one. `goes_on`: the prompt is a text that the answer continues, so that
    a space at its beginning counts, which a tokenizer may else put before every text. `ends`: ids of tokens that end it beside the
    engine's own end tokens; like those, they add no text.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        parser: OutputParser | None = None,
        specials: frozenset[str] = frozenset(),
        *,
        ends: frozenset[int] = frozenset(),
        token_ids: bool = False,
        one_call: bool = False,
        goes_on: bool = False,
    ) -> None:
        self.index = index
        self.tokens = 0
        self.finish: str | None = None
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = StopMatcher(stops)
        self._ends = ends
        self._parser = parser
        self._specials = specials if parser is not None else frozenset()
        self._opened = Parsed()
        self._called = False
        self._one_call = one_call
        self._strip = tokenizer.starts_with_space and not goes_on
        self._logprobs: list[TokenLogprob] = []
        self._ids: list[int] | None = [] if token_ids else None

    def open(self, opening: str) -> None:
        """Take what of the answer stood behind the prompt already; it comes out with the first token."""
        if self._parser is not None and opening:
            self._opened = self._parser.feed(opening)

    def add(self, out: TokenOut) -> Delta:
        """The delta that one token makes. After `finish` is set, no token may be added."""
        self.tokens += 1
        if self._ids is not None:
            self._ids.append(out.token)
        at_end = out.token in self._ends
        finish = "stop" if at_end else out.finish
        text = self._stops.feed("" if at_end else self._decode(out))
        if out.logprobs is not None and finish != "stop":  # the end token is not part of the answer
            self._logprobs.append(logprob_entry(self._tokenizer, out.token, out.logprobs))
        if finish is not None and self._stops.found is None:
            text += self._stops.finish()
        finish = "stop" if self._stops.found is not None else finish  # a stop string wins over the length that it just fits
        return self._delta(text, finish)

    def _decode(self, out: TokenOut) -> str:
        data = self._tokenizer.token_bytes(out.token)
        if not data and self._specials and out.finish != "stop":
            name = self._tokenizer.special_text(out.token)
            data = name.encode() if name in self._specials else data
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def _delta(self, text: str, finish: str | None) -> Delta:
        parsed = self._parse(text, finish is not None)
        if self._one_call and any(call.index > 0 for call in parsed.tool_calls):  # the answer ends where a second call begins
            parsed = Parsed(parsed.content, parsed.reasoning, [call for call in parsed.tool_calls if call.index == 0])
            finish = "stop"
        self._called = self._called or bool(parsed.tool_calls)
        if finish == "stop" and self._called:
            finish = "tool_calls"
        self.finish = finish
        delta = Delta(
            index=self.index,
            text=parsed.content,
            reasoning=parsed.reasoning,
            tool_calls=parsed.tool_calls,
            finish=finish,
            tokens=1,
        )
        if delta.shows():
            delta.logprobs, self._logprobs = self._logprobs, []
            if self._ids:
                delta.token_ids, self._ids = self._ids, []
        return delta

    def _parse(self, text: str, ended: bool) -> Parsed:
        if self._parser is None:
            return Parsed(content=text)
        parsed, self._opened = self._opened, Parsed()
        if text:
            parsed = joined(parsed, self._parser.feed(text))
        return joined(parsed, self._parser.finish()) if ended else parsed


def logprob_entry(tokenizer: Tokenizer, token: int, logprobs: TokenLogprobs) -> TokenLogprob:
    """The API's form of a token's log-probabilities."""
    return TokenLogprob(
        token=tokenizer.token_text(token),
        logprob=max(logprobs.logprob, LEAST_LOGPROB),
        bytes=list(tokenizer.token_bytes(token)),
        top_logprobs=[
            TopLogprob(token=tokenizer.token_text(id), logprob=max(value, LEAST_LOGPROB), bytes=list(tokenizer.token_bytes(id)))
            for id, value in logprobs.top
        ],
    )
