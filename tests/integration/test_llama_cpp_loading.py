"""Loading in the engine `llama.cpp`: options, contexts, damaged files, and a listener that is closed to all."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from xi_core.engine.base import LoadedModel
from xi_core.errors import ArtifactError, EngineError, UnknownOption
from xi_core.wire.manifest import Manifest
from xi_plugins.engines.llama_cpp.plugin import MANIFEST, WITHOUT_GRAMMARS
from xi_plugins.engines.llama_cpp.translate import CHAT, COMPLETIONS

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.engine("llama.cpp"), pytest.mark.timeout(60)]

from llama_cpp_loaded import MODEL, Loaded, answer_to  # noqa: E402

from xi_plugins.engines.llama_cpp import engine as engine_module  # noqa: E402


def test_loaded_model(loaded: Loaded) -> None:
    endpoints = {route: fields | {"structured_outputs": WITHOUT_GRAMMARS} for route, fields in MANIFEST.endpoints.items()}
    assert loaded.model == LoadedModel(context_length=1024, slots=32, manifest=Manifest(endpoints=endpoints))
    assert loaded.stages == ["reading the model's header", "reading weights", "loading weights"]
    loaded.engine.check()


def test_listener_is_closed_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    real = engine_module.Listener.properties

    def watched(self: Any, address: str) -> dict[str, Any]:
        path = address.removeprefix("unix://")
        seen.append((path, stat.S_IMODE(os.stat(Path(path).parent).st_mode)))
        return real(self, address)

    monkeypatch.setattr(engine_module.Listener, "properties", watched)
    before = _listening_ports()
    loaded = Loaded(endpoint=f"ipc://{tmp_path}/m-0.sock", slots=1)
    try:
        path, mode = seen[0]
        assert Path(path).is_relative_to(tmp_path)
        assert mode == 0o700
        assert list(tmp_path.iterdir()) == [], "socket and folder are gone"
        with socket.socket(socket.AF_UNIX) as door, pytest.raises(OSError):
            door.connect(path)
        assert _listening_ports() == before
        assert loaded.ask("What is", max_tokens=2).end == "done"
    finally:
        loaded.engine.close(5.0)


def test_a_folder_too_long_for_a_socket_is_no_fault_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch systems have such. llama.cpp listens at a port then, with a key."""
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    loaded = Loaded(endpoint="tcp://127.0.0.1:1", slots=1)
    try:
        assert loaded.ask("What is", max_tokens=2).end == "done"
        assert list(long.iterdir()) == []
    finally:
        loaded.engine.close(5.0)


def _listening_ports() -> set[str]:
    """This process's listening TCP sockets, by inode."""
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}


@pytest.mark.parametrize("kv_unified", [False, True])
def test_every_slot_has_the_promised_context(kv_unified: bool) -> None:
    loaded = Loaded(context_length=100, slots=3, kv_unified=kv_unified, batch_size=32)
    try:
        assert (loaded.model.context_length, loaded.model.slots) == (100, 3)
        ids = [loaded.start([5] * 40, max_tokens=1000, ignore_eos=True) for _ in range(3)]
        loaded.sink.wait(*ids)
        for answer in map(loaded.answer, ids):
            assert (answer.end, answer.finish, answer.usage["completion_tokens"]) == ("done", "length", 60)
        too_long = loaded.ask([5] * 101, max_tokens=1)
        assert too_long.end[0] == 400
        assert too_long.end[2:] == ("prompt", "context_length_exceeded")
        assert "101 tokens" in too_long.end[1]
    finally:
        loaded.engine.close(5.0)


def test_context_beyond_the_models_is_refused() -> None:
    with pytest.raises(UnknownOption, match="context_length 4096 is more than this model's 1024"):
        Loaded(context_length=4096)


def test_options_that_contradict() -> None:
    with pytest.raises(EngineError, match="quantized V cache requires"):
        Loaded(flash_attention="off", cache_type_v="q8_0")


@pytest.mark.parametrize(
    "options",
    [
        {"flash_attention": "on", "cache_type_k": "q8_0", "cache_type_v": "q8_0"},
        {"flash_attention": False},
        {"threads": 2, "threads_batch": 1, "batch_size": 64, "ubatch_size": 32},
        {"mmap": False},
        {"n_gpu_layers": 99, "split_mode": "none", "kv_offload": False},
        {"swa_full": True, "warmup": False, "check_tensors": True, "cache_prompt": False},
    ],
    ids=str,
)
def test_options_work(options: dict[str, Any]) -> None:
    loaded = Loaded(slots=2, **options)
    try:
        assert loaded.chat("What is 2 + 3?", max_tokens=32).text == answer_to("What is 2 + 3?")
    finally:
        loaded.engine.close(5.0)


def test_rope_options_change_the_model(loaded: Loaded) -> None:
    def first(model: Loaded) -> float:
        entry = model.chat("What is 2 + 3?", max_tokens=1, logprobs=True, top_logprobs=1).entries[0]
        return float(entry["logprob"])

    plain = first(loaded)
    for options in ({"rope_freq_scale": 0.25}, {"rope_freq_base": 10.0}):
        other = Loaded(slots=1, **options)
        try:
            assert abs(first(other) - plain) > 1e-4
        finally:
            other.engine.close(5.0)


def test_damaged_weights(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(MODEL.read_bytes()[:1_000_000])
    with pytest.raises(ArtifactError, match=r"can't load .*cut.gguf: tensor '.*' data is not within the file bounds"):
        Loaded(path=cut)


def test_without_chat_template_no_chat(tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(MODEL.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.what_template", 1))
    loaded = Loaded(path=bare, slots=1)
    try:
        assert list(loaded.model.manifest.endpoints) == [COMPLETIONS]
    finally:
        loaded.engine.close(5.0)
    loaded = Loaded(path=bare, slots=1, chat_template="{% for message in messages %}{{ message.content }}{% endfor %}")
    try:
        assert CHAT in loaded.model.manifest.endpoints
        assert loaded.chat("What is", max_tokens=2).usage["prompt_tokens"] == loaded.ask("What is", max_tokens=2).usage["prompt_tokens"]
    finally:
        loaded.engine.close(5.0)
