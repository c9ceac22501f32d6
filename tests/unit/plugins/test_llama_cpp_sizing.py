"""Context, slots and threads of a GGUF model by its size and the memory that there is."""

from __future__ import annotations

import msgspec
import pytest

from xi_core.errors import EngineError, UnknownOption
from xi_plugins.engines.llama_cpp.gguf import Header
from xi_plugins.engines.llama_cpp.options import LlamaCppOptions
from xi_plugins.engines.llama_cpp.sizing import room, size_for, threads_for

GIB = 1024**3
HEADER = Header(
    architecture="qwen2",
    context_length=4096,
    vocabulary_size=2048,
    kv_values=1024,
    has_chat_template=True,
    size=64 * 1024 * 1024,
    layers=32,
)


def test_sizes() -> None:
    assert size_for(HEADER, LlamaCppOptions(), 64 * GIB, 32).slots == 32
    assert size_for(HEADER, LlamaCppOptions(), 64 * GIB, 32).context_length == 4096
    assert size_for(HEADER, LlamaCppOptions(context_length=100, slots=3), GIB, 32).slots == 3
    # 4096 tokens * 1024 values * 2 bytes = 8 MiB per slot, of a quarter of 128 MiB
    assert size_for(HEADER, LlamaCppOptions(), 128 * 1024 * 1024, 32).slots == 4
    assert size_for(HEADER, LlamaCppOptions(cache_type_k="f32", cache_type_v="f32"), 128 * 1024 * 1024, 32).slots == 2
    with pytest.raises(UnknownOption, match="8192 is more than this model's 4096"):
        size_for(HEADER, LlamaCppOptions(context_length=8192), GIB, 32)
    with pytest.raises(EngineError, match=r"choose fewer slots.* or a smaller quantization$"):
        size_for(HEADER, LlamaCppOptions(slots=256), GIB, 32)
    with pytest.raises(EngineError, match=r"or leave layers in main memory with n_gpu_layers$"):
        size_for(HEADER, LlamaCppOptions(slots=256), GIB, 32, on_devices=True)


@pytest.mark.parametrize(
    ("layers", "in_all"),
    [
        (None, 8),  # all, or as many as llama.cpp finds to fit
        (-1, 8),
        (32, 8),
        (99, 8),
        (16, 16),  # half of it fills the device
        (8, 32),
        (1, 64 * 32 / 31),  # nearly all of it fills main memory
        (0, 64),
    ],
)
def test_layers_that_stay_in_main_memory_make_room_on_the_device(layers: int | None, in_all: float) -> None:
    assert room(HEADER, LlamaCppOptions(n_gpu_layers=layers), 8 * GIB, 64 * GIB) == pytest.approx(in_all * GIB, abs=1)


def test_without_a_device_there_is_main_memory_and_where_layers_are_unknown_the_devices_count() -> None:
    assert room(HEADER, LlamaCppOptions(n_gpu_layers=8), 0, 64 * GIB) == 64 * GIB
    assert room(msgspec.structs.replace(HEADER, layers=0), LlamaCppOptions(n_gpu_layers=8), 8 * GIB, 64 * GIB) == 8 * GIB


def test_small_models_get_one_thread() -> None:
    small = Header(architecture="a", context_length=1, vocabulary_size=1, kv_values=1, has_chat_template=False, size=2**20)
    assert threads_for(small, LlamaCppOptions(), None) == threads_for(small, LlamaCppOptions(), 3) == 1
    assert threads_for(small, LlamaCppOptions(threads=4), 2) == 4
    assert threads_for(HEADER, LlamaCppOptions(), None) is None


def test_a_container_gets_no_more_threads_than_processors() -> None:
    assert threads_for(HEADER, LlamaCppOptions(), 2) == 2
    assert threads_for(HEADER, LlamaCppOptions(threads=4), 2) == 4
