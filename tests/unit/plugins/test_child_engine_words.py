"""What vLLM and SGLang say while they work and when they can't start, as the engines understand it."""

import pytest

from xi_core.errors import EngineError
from xi_plugins.engines.sglang.engine import SglangEngine
from xi_plugins.engines.vllm.engine import VllmEngine


@pytest.mark.parametrize("engine", [VllmEngine, SglangEngine], ids=["vllm", "sglang"])
@pytest.mark.parametrize("line", ["x.cu(12): error: expected a ';'", "gcc: error: no input files", "ninja: error: loading 'build.ninja'"])
def test_a_compilers_error_is_no_wrong_option(engine, line):
    lines = [line, "RuntimeError: Ninja build failed.", line]
    for how in ("ended with status 1", "was killed by SIGABRT"):
        error = engine().failed_start(how, lines)
        assert type(error) is EngineError
        assert f"{how} while it started: Ninja build failed." in error.message


@pytest.mark.parametrize(
    "why",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.43 GiB",
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests.",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
        "ValueError: Free memory on device cuda:0 (3.25/23.43 GiB) on startup is less than desired GPU memory utilization (0.9, 21.09 GiB).",
        "ValueError: Available memory on node 0 (3.86/16.0 GiB) on startup is less than desired CPU memory utilization (0.92, 14.72 GiB).",
        "ValueError: Available memory on node 0 (1.0/4.0 GiB) on kv cache allocation is less than requested memory for kv (2.0 GiB).",
        "ValueError: To serve at least one request with the model's max seq len (4096), (1.0 GiB KV cache is needed, which is larger than the "
        "available KV cache memory (0.58 GiB).",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ],
)
def test_too_little_memory_is_told_where_vllm_says_so(why):
    error = VllmEngine().failed_start("ended with status 1", [f"(EngineCore pid=7) ERROR {why}"])
    assert type(error) is EngineError
    assert error.message == f"vLLM has too little memory: {why.partition(': ')[2]}"


@pytest.mark.parametrize(
    "why",
    [
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "OutOfResources: out of resource: shared memory, Required: 147456, Hardware limit: 101376",
        "ImportError: libgomp.so.1: cannot allocate memory in static TLS block",
        "ValueError: memory_format must be one of the known ones",
    ],
)
def test_a_cause_that_only_mentions_memory_is_told_as_it_is(why):
    error = VllmEngine().failed_start("ended with status 1", [why])
    assert type(error) is EngineError
    assert "too little memory" not in error.message
    assert why.partition(": ")[2] in error.message


def test_signs_of_work_of_sglang():
    works = SglangEngine().works
    assert works(
        "[2026-04-20 20:24:27 TP0] Prefill batch, #new-seq: 1, #new-token: 4096, #cached-token: 0, token usage: 0.02, #queue-req: 0"
    )
    assert works("[2026-04-20 20:24:28] Prefill batch [12], #new-seq: 1, #new-token: 4096")
    assert works("[2026-04-20 20:24:29] Decode batch, #running-req: 1, #token: 8, token usage: 0.00, #queue-req: 0")
    assert not works("[2026-04-20 20:24:30] Watchdog: health check failed")


def test_a_metric_of_vllm_moves_with_each_part_of_a_prompt():
    assert VllmEngine().metrics["cache_usage"] == "vllm:kv_cache_usage_perc"
