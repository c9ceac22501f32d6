"""`SamplingParams` and `StructuredOutputsParams`: vLLM's names and defaults, and how they are said in the API's words. Used by `LLM`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from xi_core.errors import InvalidRequest
from xi_core.wire.manifest import Ability

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclasses.dataclass(kw_only=True, frozen=True)
class StructuredOutputsParams:
    """What the answer must look like: exactly one of these."""

    json: str | dict[str, Any] | None = None
    """A JSON schema, or its text."""
    regex: str | None = None
    """A regular expression that the whole answer matches."""
    choice: list[str] | None = None
    """Texts, one of which is the answer."""
    grammar: str | None = None
    """A grammar in GBNF, llama.cpp's form."""
    json_object: bool | None = None
    """Any JSON object."""

    def body(self) -> dict[str, Any]:
        """The fields of a request. Raises `InvalidRequest` where not exactly one is given, or a schema's text is no JSON."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None and value is not False}
        if len(given) != 1:
            raise InvalidRequest(
                f"StructuredOutputsParams: give exactly one, not {' and '.join(given) or 'none'}", param="structured_outputs"
            )
        if "json_object" in given:
            return {"response_format": {"type": "json_object"}}
        if isinstance(self.json, str):
            try:
                given["json"] = msgspec.json.decode(self.json)
            except msgspec.DecodeError as error:
                raise InvalidRequest(f"structured_outputs.json is no JSON: {error}", param="structured_outputs.json") from None
        return {"structured_outputs": given}


@dataclasses.dataclass(kw_only=True, frozen=True)
class SamplingParams:
    """How to sample one request. Ranges are those of the API: a value outside of them is refused when it is used (`InvalidRequest`)."""

    n: int = 1
    """Answers per prompt."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 and -1: all tokens."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16
    """None: as many as the model's context holds."""
    stop: str | list[str] | None = None
    seed: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    """How many likeliest tokens to tell for each token; None: no log-probabilities."""
    logit_bias: dict[int, float] | None = None
    structured_outputs: StructuredOutputsParams | None = None

    def body(self, route: str, cells: Mapping[str, Ability], context_length: int) -> dict[str, Any]:
        """The fields of a request on `route`.

        A field at its neutral value is said too, so that the model's own defaults don't count, but not to an engine that doesn't have
        it (`cells`, of its manifest): nothing is lost there.
        """
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value, cell = getattr(self, field.name), cells.get(field.name)
            if value != field.default or (cell is not None and cell.state != "no" and value is not None):
                fields[field.name] = value
        fields["max_tokens"] = self.max_tokens
        if self.max_tokens is None and route == COMPLETIONS:  # there the API's default is 16
            fields["max_tokens"] = context_length
        if self.structured_outputs is not None:
            del fields["structured_outputs"]
            fields |= self.structured_outputs.body()
        if self.logit_bias:
            fields["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        if self.logprobs is not None and route == CHAT:
            fields["logprobs"], fields["top_logprobs"] = True, self.logprobs
        return fields
