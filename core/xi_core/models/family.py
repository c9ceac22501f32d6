"""Families and specs: what a named line of models is, and each size, format and quantization that it comes in."""

from __future__ import annotations

from msgspec import Struct, field


class SourceRef(Struct, kw_only=True, frozen=True):
    """Where a spec's files come from: a source plugin's name and that source's own id (a path, a hub id)."""

    source: str
    id: str
    revision: str | None = None


class ModelSpec(Struct, kw_only=True):
    """One size, format and quantization of a model, from a family or read from local files."""

    name: str
    format: str
    """`pytorch` (a Hugging Face directory), `ggufv2` (a GGUF file), `mlx`."""
    source: SourceRef
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
