"""Families and specs: what a named line of models is, and each size, format and quantization that it comes in."""

from __future__ import annotations

from msgspec import Struct, field

from xi_core.models.architecture import Architecture


class SourceRef(Struct, kw_only=True, frozen=True):
    """Where a spec's files come from: a source plugin's name and that source's own id (a path, a hub id)."""

    source: str
    id: str
    revision: str | None = None
    files: tuple[str, ...] = ()
    """Those files of a repository that are the model, the first to load first; empty: all of it."""
    code: bool = False
    """This launch may have the repository's Python code. Its worker says so, not who wrote the reference; and so of `pickled`."""
    pickled: bool = False
    """This launch may have `pytorch_model*.bin` where there are no other weights."""


class ModelSpec(Struct, kw_only=True):
    """One size, format and quantization of a model, from a family or read from local files."""

    name: str
    format: str
    """`pytorch` (a Hugging Face directory), `ggufv2` (a GGUF file), `mlx`, or quantized directories: `gptq`, `awq`, `fp8`."""
    source: SourceRef
    mirrors: tuple[SourceRef, ...] = ()
    """The same files at other sources."""
    size_in_billions: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    architecture: str | None = None
    model_type: str = "LLM"
    """`LLM`, `embedding` or `rerank`."""
    abilities: list[str] = field(default_factory=lambda: ["generate"])
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    chat_template: str | None = None
    packages: list[str] = field(default_factory=list)
    """What an environment of its own needs beside its engine's packages: names with versions."""
    architecture_figures: Architecture | None = None
    """Sizes of its layers, from which its memory is estimated; None where nobody knows."""
    weight_bytes: int | None = None
    """Bytes of its weights on disk, where they are there; None: estimated from the figures."""
    pickled: bool = False
    """Its weights are there as `pytorch_model*.bin` only."""
    remote_code: bool = False
    """This launch lets code in the model's directory run."""
    stop: list[str] = field(default_factory=list)
    """Strings, names of special tokens among them, that end an answer beside the end tokens in the model's files."""
    stop_token_ids: list[int] = field(default_factory=list)

    def describe(self) -> str:
        """A short name for people: `xi-tiny 0.001B ggufv2 f16`."""
        size = f"{self.size_in_billions}B" if self.size_in_billions else ""
        return " ".join(part for part in (self.name, size, self.format, self.quantization or "") if part)


class ModelFamily(Struct, kw_only=True):
    """A named line of models, as `xi_model_families` returns it."""

    name: str
    description: str
    specs: list[ModelSpec]
    model_type: str = "LLM"
    aliases: tuple[str, ...] = ()
    path: str | None = None
    """A directory or file of the worker's machine that is the model: read when it is launched, in place of `specs`."""
    at_path: ModelSpec | None = None
    """What the family says itself of the model at `path`: template, parsers, stops. The rest is read there."""
