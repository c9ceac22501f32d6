"""Built-in model families."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelFamily, ModelSpec, SourceRef


@hookimpl
def xi_model_families() -> Iterable[ModelFamily]:
    """`xi-tiny`, a model of a few hundred kilobytes that is shipped with xi, for trying it out and for tests."""
    return [
        ModelFamily(
            name="xi-tiny",
            description="A tiny chat model shipped with xi, to try it without a download",
            specs=[
                _xi_tiny("ggufv2", "f16", "xi_tiny/xi-tiny-f16.gguf"),
                _xi_tiny("pytorch", "none", "xi_tiny/hf"),
            ],
        )
    ]


def _xi_tiny(model_format: str, quantization: str, path: str) -> ModelSpec:
    return ModelSpec(
        name="xi-tiny",
        format=model_format,
        source=SourceRef(source="builtin", id=path),
        size_in_billions="0.001",
        quantization=quantization,
        context_length=1024,
        architecture="Qwen2ForCausalLM",
        abilities=["generate", "chat", "tools"],
        tool_parser="hermes",
    )
