"""The plugin of the fake engines, as light as a real one: it doesn't import `xi_core.testing.fakes`."""

from __future__ import annotations

from collections.abc import Iterable

from xi_core.engine.info import EngineInfo, EngineOptions, HostInfo, Support
from xi_core.hookspecs import hookimpl
from xi_core.models.family import ModelSpec
from xi_core.wire.manifest import COMMON_FIELDS, YES, Manifest, limited, of_fields, pooling_manifest

FORMAT = "fake"


class FakeOptions(EngineOptions):
    """Options of both fake engines."""

    slots: int = 4
    context_length: int = 512
    pace: float = 0.0
    """Seconds that a step of the counting engine takes."""


def full_manifest() -> Manifest:
    """All fields of chat and completions."""
    fields = dict.fromkeys(COMMON_FIELDS, YES)
    chat = {**fields, "tools": YES, "tool_choice": limited("none", "auto"), "parallel_tool_calls": YES}
    return of_fields(chat=chat, completions={**fields, "echo": YES})


def counting_manifest() -> Manifest:
    """The same for an engine whose prompts xi renders."""
    manifest = full_manifest()
    manifest.endpoints["/v1/chat/completions"] |= {"chat_template_kwargs": YES, "tool_choice": YES}
    return manifest


def _probe(host: HostInfo) -> Support:
    return Support(ok=True, reason="always here")


def _match(spec: ModelSpec, host: HostInfo) -> Support:
    return Support(ok=spec.format == FORMAT, reason=f"takes the format {FORMAT} only")


def _info(name: str, engine: str, manifest: Manifest, others: dict[str, str] | None = None) -> EngineInfo:
    return EngineInfo(
        name=name,
        engine=engine,
        formats=(FORMAT,),
        manifest=manifest,
        probe=_probe,
        match=_match,
        options=FakeOptions,
        engines_by_type=others or {},
    )


@hookimpl
def xi_engines() -> Iterable[EngineInfo]:
    """A token engine, an API engine, and one over a server that runs as a child process."""
    yield _info("counting", "xi_core.testing.fakes:CountingEngine", counting_manifest())
    yield _info("scripted", "xi_core.testing.fakes:ScriptedEngine", full_manifest())
    pooled = dict.fromkeys(("embedding", "rerank"), "xi_core.testing.stub_engine:StubPoolingEngine")
    both = Manifest(endpoints=full_manifest().endpoints | pooling_manifest("embeddings", "rerank").endpoints)
    yield _info("stub-server", "xi_core.testing.stub_engine:StubServerEngine", both, pooled)
    yield EngineInfo(
        name="letters",
        engine="xi_core.testing.pooling_fakes:LetterEngine",
        formats=(FORMAT,),
        manifest=pooling_manifest("embeddings", "rerank"),
        probe=_probe,
        match=lambda spec, host: Support(ok=spec.format == FORMAT and spec.model_type != "LLM", reason="it generates no text"),
        options=FakeOptions,
    )
