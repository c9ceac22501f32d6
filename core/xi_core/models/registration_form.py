"""Files that people register: a family file in xi's form, or a custom model in Xinference's, which becomes one.

Xinference's form: https://inference.readthedocs.io/en/latest/models/custom.html
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from msgspec import Struct, field

from xi_core.errors import InvalidRequest
from xi_core.models.family_file import WORDS, Ability, FamilyFile, Format, Kind, SpecEntry, check, field_error, read_family, syntax_error

UNUSED = {
    "reasoning_start_tag": "name a reasoning parser at launch (--reasoning-parser)",
    "reasoning_end_tag": "name a reasoning parser at launch (--reasoning-parser)",
    "prompt_style": "give a chat_template",
    "virtualenv": "give packages at launch",
    "tool_parser": "its names are other ones; name a tool parser at launch (--tool-parser)",
}
"""Fields of Xinference's form that xi has another way for: a registration is told so."""


THEIRS = {
    "name": "model_name",
    "description": "model_description",
    "path": "model_path",
    "abilities": "model_ability",
    "specs": "model_specs",
    "format": "model_format",
    "sizes": "model_size_in_billions",
    "sources": "model_id",
    "revisions": "model_revision",
    "file": "model_file_name_template",
    "split_file": "model_file_name_split_template",
    "parts": "quantization_parts",
}
"""What Xinference calls the fields of a family file."""


class Form(Struct, frozen=True):
    """A family that was read, and what of it xi does another way."""

    family: FamilyFile
    notes: list[str]


class _Spec(Struct, kw_only=True, forbid_unknown_fields=True):
    """One of `model_specs`. What stands under `Any` says nothing to xi."""

    model_format: Format
    model_size_in_billions: int | float | str | None = None
    quantization: str | None = None
    quantizations: list[str] | None = None
    model_id: str | None = None
    model_hub: str = "huggingface"
    model_uri: str | None = None
    model_revision: str | None = None
    model_file_name_template: str | None = None
    model_file_name_split_template: str | None = None
    quantization_parts: dict[str, list[str]] | None = None
    activated_size_in_billions: Any = None
    multimodal_projectors: Any = None


class _Custom(Struct, kw_only=True, forbid_unknown_fields=True):
    """Xinference's custom model; of an embedding model or a reranker the specs' fields may stand outside."""

    model_name: str
    model_description: str | None = None
    model_type: str | None = None
    model_ability: list[str] = field(default_factory=list)
    context_length: int | None = None
    max_tokens: int | None = None
    architectures: list[str] | None = None
    tool_parser: str | None = None
    chat_template: str | None = None
    model_path: str | None = None
    model_id: str | None = None
    model_uri: str | None = None
    model_hub: str = "huggingface"
    model_revision: str | None = None
    model_specs: list[_Spec] = field(default_factory=list)
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    reasoning_start_tag: Any = None
    reasoning_end_tag: Any = None
    prompt_style: Any = None
    virtualenv: Any = None
    version: Any = None
    model_lang: Any = None
    language: Any = None
    model_family: Any = None
    dimensions: Any = None
    type: Any = None
    is_builtin: Any = None


_custom = msgspec.json.Decoder(_Custom).decode
_any = msgspec.json.Decoder(dict[str, Any]).decode


def read_form(text: str | bytes, model_type: str | None = None, place: str = "the family") -> Form:
    """The family in either form; `model_type` is what a form that doesn't tell is taken for.

    Raises `InvalidRequest`, which names the line and the field.
    """
    try:
        given = _any(text)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"{place} is no JSON object: {error}", param="model") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise syntax_error(error, text, place) from None
    if "model_name" not in given:
        if "model_type" not in given and model_type:
            text = _typed(text, model_type, bool(given))
        return Form(read_family(text, place), [])
    try:
        custom = _custom(text)
    except msgspec.ValidationError as error:
        raise field_error(error, text, place, _Custom, _Spec) from None
    notes = [f"{name} is not used: {why}" for name, why in UNUSED.items() if given.get(name)]
    notes += [f"the ability {word} is not served" for word in custom.model_ability if word not in get_args(Ability)]
    family = _converted(custom, model_type)
    return Form(_checked(family, text, place), notes)


def _typed(text: str | bytes, model_type: str, more: bool) -> str:
    """The object with its type as the first of its fields, and `more`; faults are told with its lines, which stay as they are."""
    plain = text.decode() if isinstance(text, bytes) else text
    kind = msgspec.json.encode(model_type).decode()
    return plain.replace("{", f'{{"model_type": {kind}{", " if more else ""}', 1)


def _checked(family: FamilyFile, text: str | bytes, place: str) -> FamilyFile:
    """What types and rules say of the fields that were carried over."""
    try:
        family = msgspec.convert(msgspec.to_builtins(family), FamilyFile)
    except msgspec.ValidationError as error:
        raise field_error(error, text, place, names=THEIRS) from None
    check(family, text, place, THEIRS)
    return family


def _converted(custom: _Custom, model_type: str | None) -> FamilyFile:
    kind: Any = custom.model_type or model_type or "LLM"
    specs = list(custom.model_specs)
    if not specs and (custom.model_id or custom.model_uri):
        specs = [
            _Spec(
                model_format="pytorch",
                model_id=custom.model_id,
                model_uri=custom.model_uri,
                model_hub=custom.model_hub,
                model_revision=custom.model_revision,
            )
        ]
    return FamilyFile(
        name=custom.model_name,
        description=custom.model_description or "",
        model_type=kind,
        abilities=_abilities(custom.model_ability, kind),
        context_length=custom.context_length or custom.max_tokens,
        architecture=custom.architectures[0] if custom.architectures else None,
        chat_template=custom.chat_template or None,
        stop=[text for text in custom.stop or () if text] if kind == "LLM" else [],
        stop_token_ids=list(custom.stop_token_ids or ()) if kind == "LLM" else [],
        path=custom.model_path,
        specs=[_entry(spec) for spec in specs],
    )


def _abilities(words: list[str], kind: Kind) -> list[Ability]:
    """Theirs that xi has too; a model that chats also generates."""
    known = [word for word in words if word in get_args(Ability) and word in WORDS.get(kind, ())]
    return ["generate", *known] if "chat" in known and "generate" not in known else known  # type: ignore[return-value,list-item]


def _entry(spec: _Spec) -> SpecEntry:
    source, name = ("local", spec.model_uri) if spec.model_uri else (spec.model_hub, spec.model_id or "")
    return SpecEntry(
        format=spec.model_format,
        sizes=[_size(spec.model_size_in_billions)] if spec.model_size_in_billions is not None else [],
        quantizations=spec.quantizations or [spec.quantization or "none"],
        sources={source: name},
        revisions={source: spec.model_revision} if spec.model_revision and not spec.model_uri else {},
        file=spec.model_file_name_template if not spec.model_uri else None,
        split_file=spec.model_file_name_split_template if not spec.model_uri and spec.quantization_parts else None,
        parts={name: len(parts) for name, parts in (spec.quantization_parts or {}).items()} if not spec.model_uri else {},
    )


def _size(size: int | float | str) -> str:
    return f"{size:.12g}" if isinstance(size, int | float) else size.replace("_", ".")
