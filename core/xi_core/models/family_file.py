"""Family files: the JSON form of a model family, checked field by field. Built-in families and registered ones are such files.

One entry of `specs` stands for many model specs: its templates are filled in for each of its sizes and quantizations. `docs/reference.py`
publishes the schema of these structs.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta, Struct, field

from xi_core.errors import InvalidRequest
from xi_core.models.architecture import Architecture
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef
from xi_core.models.json_place import line_of

FamilyName = Annotated[str, Meta(pattern=r"^(?!\.+$)[A-Za-z0-9._-]{1,128}$(?!\n)")]
"""A family's name, which names its file too."""
Size = Annotated[str, Meta(pattern=r"^\d{1,6}(\.\d{1,6})?$(?!\n)")]
"""Billions of weights: "7" or "0.5"."""
Text = Annotated[str, Meta(min_length=1, max_length=4096)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Format = Literal["pytorch", "ggufv2", "mlx", "gptq", "awq", "fp8"]
Kind = Literal["LLM", "embedding", "rerank"]
WORDS = {"LLM": ("generate", "chat", "tools", "reasoning", "hybrid"), "embedding": ("embed",), "rerank": ("rerank",)}
"""Abilities by model type. `hybrid`: its thinking can be switched."""
Ability = Literal["generate", "chat", "tools", "reasoning", "hybrid", "embed", "rerank"]
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9._-]+")
PLACES = ("size", "quantization", "part")
"""What templates may hold, in braces."""
LARGEST_FILE = 1024 * 1024
NO_NAMES: Mapping[str, str] = {}


class SpecEntry(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Model specs of one format: one for each of `sizes` and `quantizations`."""

    format: Format
    sizes: list[Size] = field(default_factory=list)
    """Billions of weights; `{size}` in templates. Empty: not told."""
    quantizations: Annotated[list[Text], Meta(min_length=1)] = field(default_factory=lambda: ["none"])
    """`{quantization}` in templates."""
    sources: Annotated[dict[Text, Text], Meta(min_length=1)]
    """Templates of the id at each source: `huggingface`, `modelscope`, `local` (an absolute path). The first is the default."""
    revisions: dict[Text, Text] = field(default_factory=dict)
    """Commit, tag or branch by source."""
    file: Text | None = None
    """Template of the file's name in the repository (GGUF); none: the whole repository."""
    split_file: Text | None = None
    """Template of the names of a quantization that is split, with `{part}`, which becomes `00001-of-00002`."""
    parts: dict[Text, Annotated[int, Meta(ge=2, le=999)]] = field(default_factory=dict)
    """Into how many files a quantization is split."""
    context_length: Annotated[int, Meta(ge=1)] | None = None
    """Instead of the family's; so are the next two."""
    architecture: Text | None = None
    abilities: list[Ability] | None = None


class FamilyFile(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A model family. Either `specs`, or `path` for a model on the worker's disk that says itself what it is."""

    name: FamilyName
    description: Annotated[str, Meta(max_length=4096)] = ""
    model_type: Kind = "LLM"
    aliases: list[FamilyName] = field(default_factory=list)
    abilities: list[Ability] = field(default_factory=list)
    """Default: `generate` for an LLM, `embed` or `rerank` for the others."""
    context_length: Annotated[int, Meta(ge=1)] | None = None
    """Most tokens that it was made for."""
    architecture: Text | None = None
    """As `architectures` in its config.json."""
    tool_parser: Text | None = None
    reasoning_parser: Text | None = None
    chat_template: Annotated[str, Meta(min_length=1, max_length=262144)] | None = None
    """Instead of the one in the model's own files."""
    stop: Annotated[list[Stop], Meta(max_length=32)] = field(default_factory=list)
    """Strings that end an answer, beside the end tokens in the model's own files; a special token by its name."""
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] = field(default_factory=list)
    """The same by ids, for tokens whose names the model's files don't tell. The engine `llama.cpp` has no field for them."""
    figures: dict[Size, Architecture] = field(default_factory=dict)
    """By size: figures of the layers, from which memory is estimated."""
    path: Text | None = None
    specs: list[SpecEntry] = field(default_factory=list)


_NAME = "1 to 128 letters (A-Z), digits, '.', '_' and '-', and not dots alone"
HINTS = {
    **dict.fromkeys(("name", "model_name", "aliases"), _NAME),
    **dict.fromkeys(("sizes", "figures"), "billions of weights, such as 7 or 0.5"),
    **dict.fromkeys(("format", "model_format"), f"one of {', '.join(get_args(Format))}"),
    "model_type": f"one of {', '.join(WORDS)}",
    "abilities": f"one of {', '.join(get_args(Ability))}",
}
"""What a field holds, in words, by the field's name."""

_decode = msgspec.json.Decoder(FamilyFile).decode


def read_family(text: str | bytes, place: str = "the family") -> FamilyFile:
    """The family that `text` describes, checked. Raises `InvalidRequest`, which names `place`, the line and the field."""
    try:
        found = _decode(text)
    except msgspec.ValidationError as error:
        raise field_error(error, text, place) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise syntax_error(error, text, place) from None
    check(found, text, place)
    return found


def syntax_error(error: Exception, text: str | bytes, place: str) -> InvalidRequest:
    """What is wrong with a text that is no JSON, with its line and column."""
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(f"{place} is not UTF-8: {error.reason}", param="model")
    if isinstance(error, RecursionError):
        return InvalidRequest(f"{place} is nested too deeply", param="model")
    plain = _plain(text)
    found = re.search(r" \(byte (\d+)\)$", str(error))
    before = plain.encode()[: int(found[1])].decode(errors="ignore") if found else plain
    column = len(before) - (before.rfind("\n") + 1) + 1
    what = str(error)[: found.start()] if found else str(error)
    return InvalidRequest(f"{place} is not valid JSON: {what} (line {before.count(chr(10)) + 1}, column {column})", param="model")


def field_error(
    error: msgspec.ValidationError,
    text: str | bytes,
    place: str,
    top: type[Struct] = FamilyFile,
    below: type[Struct] = SpecEntry,
    names: Mapping[str, str] = NO_NAMES,
) -> InvalidRequest:
    """msgspec's complaint about one field, with its line. `top` and `below` are the structs that were expected; `names` as in `check`."""
    message = str(error)
    path = re.search(r" - at `(?:key in )?\$\.?(.*?)`$", message)
    where = path[1] if path else ""
    message = message[: path.start()] if path else message
    unknown = re.search(r"unknown field `([^`]+)`", message)
    if unknown:
        known = (top if not where else Architecture if where.startswith("figures") else below).__struct_fields__
        close = difflib.get_close_matches(unknown[1], known, n=1)
        message = f"unknown field '{unknown[1]}'; " + (f"did you mean '{close[0]}'?" if close else f"fields: {', '.join(known)}")
        where = f"{where}.{unknown[1]}" if where else unknown[1]
    else:
        hint = HINTS.get(re.sub(r"\[[^\]]*\]$", "", where).rpartition(".")[2])
        if hint is not None and not message.startswith("Object"):
            message = f"{'this has not the right form' if 'regex' in message else message}; it is {hint}"
    return _fault(text, place, where, message, names)


def _fault(text: str | bytes, place: str, where: str, message: str, names: Mapping[str, str]) -> InvalidRequest:
    where = re.sub(r"[a-z_]+", lambda word: names.get(word[0], word[0]), where)
    line = line_of(_plain(text), where)
    return InvalidRequest(f"{place}, line {line}: {f'{where}: ' if where else ''}{message}", param=where or "model")


def _plain(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


# ---- what types can't say ---------------------------------------------------------------------------


def check(family: FamilyFile, text: str | bytes, place: str, names: Mapping[str, str] = NO_NAMES) -> None:
    """Raises `InvalidRequest` for the first thing in `family`, read from `text`, that doesn't fit together.

    `names`: what fields are called in `text`, where it has other names for them.
    """
    fault = next(_faults(family), None)
    if fault is not None:
        raise _fault(text, place, *fault, names)


def _faults(family: FamilyFile) -> Iterator[tuple[str, str]]:
    """Fields and what is wrong with them."""
    if bool(family.path) == bool(family.specs):
        yield "specs", "a family has either specs, which name files by format and size, or the path of one model"
    if family.path and not _is_local(family.path):
        yield "path", f"'{family.path}' is no absolute path (nor a file:// URL)"
    yield from _ability_faults("abilities", family.model_type, family.abilities)
    for name in ("stop", "stop_token_ids"):
        if getattr(family, name) and family.model_type != "LLM":
            yield name, f"a model of type {family.model_type} generates no text that could end"
    sizes = {size for entry in family.specs for size in entry.sizes}
    for size in family.figures:
        if size not in sizes:
            yield "figures", f"no spec has the size {size}"
    for number, entry in enumerate(family.specs):
        for name, message in _entry_faults(entry, family.model_type):
            yield f"specs[{number}].{name}", message


def _entry_faults(entry: SpecEntry, model_type: str) -> Iterator[tuple[str, str]]:
    yield from _ability_faults("abilities", model_type, entry.abilities or [])
    for source, name in entry.sources.items():
        where = "sources"
        yield from ((where, message) for message in _template_faults(name, entry))
        if source == "local" and not _is_local(name):
            yield where, f"local: '{name}' is no absolute path (nor a file:// URL)"
        elif source in ("huggingface", "modelscope") and not HUB_ID.fullmatch(_filled(name, "1", "1")):
            yield where, f"{source}: '{name}' is no hub id; one reads owner/name"
    for source in entry.revisions:
        if source not in entry.sources:
            yield "revisions", f"'{source}' is none of the sources ({', '.join(entry.sources)})"
    for quantization in entry.parts:
        if quantization not in entry.quantizations:
            yield "parts", f"'{quantization}' is none of the quantizations ({', '.join(entry.quantizations)})"
    if bool(entry.parts) != bool(entry.split_file):
        yield "parts", "parts and split_file go together: how many files, and how they are named"
    for field_name in ("file", "split_file"):
        template = getattr(entry, field_name)
        if template is not None:
            yield from ((field_name, message) for message in _template_faults(template, entry))
            if template.startswith(("/", "~")) or ".." in template.split("/") or "\\" in template:
                yield field_name, f"'{template}' leaves the repository"
    if entry.split_file and "{part}" not in entry.split_file:
        yield "split_file", f"'{entry.split_file}' has no {{part}}"


def _template_faults(template: str, entry: SpecEntry) -> Iterator[str]:
    strange = _strange(template)
    if strange:
        yield f"'{template}' holds {strange}; templates hold {', '.join(f'{{{name}}}' for name in PLACES)}"
    elif "{size}" in template and not entry.sizes:
        yield f"'{template}' holds {{size}}, but there are no sizes"


def _strange(template: str) -> str:
    """The first brace, or name in braces, that means nothing."""
    left = template
    for name in PLACES:
        left = left.replace(f"{{{name}}}", "")
    found = re.search(r"\{[^}]*\}?|\}", left)
    return found[0] if found else ""


def _ability_faults(where: str, model_type: str, abilities: list[Ability]) -> Iterator[tuple[str, str]]:
    for ability in abilities:
        if ability not in WORDS[model_type]:
            yield where, f"'{ability}' is no ability of a model of type {model_type}; abilities: {', '.join(WORDS[model_type])}"


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", "file://")) or bool(re.match(r"[A-Za-z]:[\\/]", path))


# ---- from the file to the family -------------------------------------------------------------------


def expanded(file: FamilyFile) -> ModelFamily:
    """The family with all of its specs."""
    return ModelFamily(
        name=file.name,
        description=file.description,
        specs=[spec for entry in file.specs for spec in _specs(file, entry)],
        model_type=file.model_type,
        aliases=tuple(file.aliases),
        path=file.path,
        at_path=_spec(file, SourceRef(source="local", id=file.path), file.abilities) if file.path else None,
    )


def _spec(file: FamilyFile, source: SourceRef, abilities: Sequence[str]) -> ModelSpec:
    """What all specs of a family have in common."""
    return ModelSpec(
        name=file.name,
        format="",
        source=source,
        context_length=file.context_length,
        architecture=file.architecture,
        model_type=file.model_type,
        abilities=list(abilities),
        tool_parser=file.tool_parser,
        reasoning_parser=file.reasoning_parser,
        chat_template=file.chat_template,
        stop=list(file.stop),
        stop_token_ids=list(file.stop_token_ids),
    )


def _specs(file: FamilyFile, entry: SpecEntry) -> Iterator[ModelSpec]:
    abilities = list(entry.abilities or file.abilities or (WORDS[file.model_type][0],))
    for size in entry.sizes or [""]:
        for quantization in entry.quantizations:
            source, *mirrors = _references(entry, size, quantization)
            yield msgspec.structs.replace(
                _spec(file, source, abilities),
                format=entry.format,
                mirrors=tuple(mirrors),
                size_in_billions=size or None,
                quantization=quantization,
                context_length=entry.context_length or file.context_length,
                architecture=entry.architecture or file.architecture,
                architecture_figures=file.figures.get(size),
            )


def _references(entry: SpecEntry, size: str, quantization: str) -> list[SourceRef]:
    files = tuple(_files(entry, size, quantization))
    return [
        SourceRef(source=source, id=_filled(name, size, quantization), revision=entry.revisions.get(source), files=files)
        for source, name in entry.sources.items()
    ]


def _files(entry: SpecEntry, size: str, quantization: str) -> Iterator[str]:
    count = entry.parts.get(quantization, 1)
    if count > 1 and entry.split_file:
        for number in range(1, count + 1):
            yield _filled(entry.split_file, size, quantization).replace("{part}", f"{number:05}-of-{count:05}")
    elif entry.file:
        yield _filled(entry.file, size, quantization)


def _filled(template: str, size: str, quantization: str) -> str:
    return template.replace("{size}", size).replace("{quantization}", quantization)


def schema() -> dict[str, object]:
    """The JSON schema of a family file."""
    found = msgspec.json.schema(FamilyFile)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "xi model family", **found}
