"""`response_format` and `structured_outputs` of a request, as a `Grammar` for token engines and as plain fields for API engines."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from xi_core.api.openai import ChatRequest, CompletionRequest, ResponseFormat, StructuredOutputs
from xi_core.engine.grammar import Grammar, Kind
from xi_core.errors import InvalidRequest
from xi_core.serving.schema import normalise

ANY_OBJECT: dict[str, Any] = {"type": "object"}
_NAMES: dict[Kind, str] = {"json_schema": "json", "regex": "regex", "choice": "choice", "gbnf": "grammar"}
_ROOT = re.compile(r"^[ \t]*root[ \t]*::=", re.MULTILINE)


def grammar_of(request: ChatRequest | CompletionRequest) -> Grammar | None:
    """What the answer must look like; None where that is free. Raises `InvalidRequest`."""
    format, outputs = request.response_format, request.structured_outputs
    by_format = _of_format(format) if format is not None else None
    if outputs is None:
        found = by_format
    elif by_format is not None:
        raise InvalidRequest("structured_outputs and response_format: give only one of them", param="structured_outputs")
    else:
        found = _of_outputs(outputs)
    if found is not None:
        _check_others(request, found)
    return found


def engine_fields(grammar: Grammar) -> dict[str, Any]:
    """The same for an API engine's body, in OpenAI's or in vLLM's form; `grammar_in` reads either again."""
    if grammar.param.startswith("response_format"):
        schema = {"name": "answer", "strict": True, "schema": msgspec.json.decode(grammar.text)}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    is_json = grammar.kind in ("json_schema", "choice")
    return {"structured_outputs": {_NAMES[grammar.kind]: msgspec.json.decode(grammar.text) if is_json else grammar.text}}


def grammar_in(body: dict[str, Any]) -> Grammar | None:
    """What an API engine's body says of the answer: the inverse of `engine_fields`."""
    if "response_format" in body:
        schema = body["response_format"]["json_schema"]["schema"]
        return Grammar(kind="json_schema", text=_text(schema), param="response_format")
    for kind, name in _NAMES.items():
        value = body.get("structured_outputs", {}).get(name)
        if value is not None:
            return Grammar(kind=kind, text=value if isinstance(value, str) else _text(value), param=f"structured_outputs.{name}")
    return None


def _of_format(format: ResponseFormat) -> Grammar | None:
    if format.type == "json_schema":
        if format.json_schema is None:
            raise InvalidRequest("response_format: type 'json_schema' needs json_schema", param="response_format.json_schema")
        return _json(format.json_schema.schema, "response_format.json_schema.schema")
    if format.json_schema is not None:
        raise InvalidRequest(f"response_format: type '{format.type}' takes no json_schema", param="response_format.json_schema")
    return _json(ANY_OBJECT, "response_format") if format.type == "json_object" else None


def _of_outputs(outputs: StructuredOutputs) -> Grammar:
    given = [name for name in outputs.__struct_fields__ if getattr(outputs, name) is not None]
    if len(given) != 1:
        raise InvalidRequest("structured_outputs: give exactly one of json, regex, choice, grammar", param="structured_outputs")
    param = f"structured_outputs.{given[0]}"
    if outputs.json is not None:
        return _json(outputs.json, param)
    if outputs.choice is not None:
        return Grammar(kind="choice", text=_text(list(dict.fromkeys(outputs.choice))), param=param)
    if outputs.regex is not None:
        return Grammar(kind="regex", text=outputs.regex, param=param)
    return _gbnf(outputs.grammar or "", param)


def _gbnf(text: str, param: str) -> Grammar:
    """Other languages of grammars are refused here: engines would tell them apart by their first letters."""
    if text.lstrip().startswith("%") or not _ROOT.search(text):
        raise InvalidRequest(f"{param}: not a grammar in GBNF: it has no rule 'root ::= …'", param=param)
    return Grammar(kind="gbnf", text=text, param=param)


def _json(schema: dict[str, Any], param: str) -> Grammar:
    return Grammar(kind="json_schema", text=_text(normalise(schema, param)), param=param)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _check_others(request: ChatRequest | CompletionRequest, grammar: Grammar) -> None:
    field = grammar.param.partition(".")[0]
    if request.ignore_eos:
        raise InvalidRequest(f"ignore_eos and {field}: an answer that is complete must end", param="ignore_eos")
    if isinstance(request, ChatRequest) and request.tools and request.tool_choice != "none":
        raise InvalidRequest(f"{field} and tools: give only one of them, or tool_choice: none", param=field)
