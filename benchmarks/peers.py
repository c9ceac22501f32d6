"""What xi's engines are compared with, each in a process of its own: the bare libraries.

    python -m benchmarks.peers transformers --model DIRECTORY --threads N     runs batches that it is told of on stdin, line by line
    python -m benchmarks.peers llama --model FILE.gguf --threads N            serves HTTP with llama.cpp's own listener

Each writes a line on its standard output when it is ready; the first then one per batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SLOTS = 32
CONTEXT = 1024
"""Tokens of context for each slot, in xi and in its peers."""


class Transformers:
    """A model under the library's own ways of running a batch. Greedy, and never ended by a token."""

    def __init__(self, model: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        library: Any = AutoModelForCausalLM
        self._model = library.from_pretrained(str(model), dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    def static(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds of one `generate` over all prompts, which are equally long, so that nothing is padded."""
        torch = self._torch
        ids = torch.tensor(prompts)
        began = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        seconds = time.perf_counter() - began
        if out.shape[1] != ids.shape[1] + tokens:
            raise RuntimeError(f"generate gave {out.shape[1] - ids.shape[1]} tokens instead of {tokens}")
        return seconds

    def continuous(self, prompts: list[list[int]], tokens: int) -> float:
        """Seconds of the library's continuous batching, from the first request to the last answer; its start-up doesn't count."""
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        library: Any = GenerationConfig
        generation = library(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        pages = len(prompts) * (-(-(len(prompts[0]) + tokens) // 32) + 1)
        batching = ContinuousBatchingConfig(num_blocks=pages, page_size=32, max_batch_tokens=512)
        running = self._model.init_continuous_batching(generation_config=generation, continuous_batching_config=batching)
        running.start()
        try:
            self._collect(running, prompts[:1], 2)
            began = time.perf_counter()
            self._collect(running, prompts, tokens)
            return time.perf_counter() - began
        finally:
            running.stop(block=True)

    def _collect(self, running: Any, prompts: list[list[int]], tokens: int) -> None:
        for prompt in prompts:
            running.add_request(prompt, max_new_tokens=tokens)
        left = len(prompts)
        while left:
            result = running.get_result(timeout=60)
            if result is None:
                raise RuntimeError("continuous batching gives no more results")
            if result.is_finished():
                left -= 1
                if len(result.generated_tokens) != tokens:
                    raise RuntimeError(
                        f"continuous batching gave {len(result.generated_tokens)} tokens instead of {tokens}: {result.error}"
                    )


def orders() -> Iterator[dict[str, Any]]:
    """What the benchmark tells this process to run."""
    for line in sys.stdin:
        yield json.loads(line)


def _run_transformers(model: Path, threads: int) -> None:
    library = Transformers(model, threads)
    print("ready", flush=True)
    for order in orders():
        run = library.static if order["mode"] == "static" else library.continuous
        print(json.dumps(run(order["prompts"], order["tokens"])), flush=True)


def _run_llama(model: Path, threads: int) -> None:
    """llama.cpp with the parameters that xi's engine would give it, but with its listener on TCP for everybody."""
    import xllamacpp

    from xi_core.wire.plan import Artifact, EngineRef, LaunchPlan
    from xi_plugins.engines.llama_cpp.options import LlamaCppOptions
    from xi_plugins.engines.llama_cpp.params import common_params
    from xi_plugins.engines.llama_cpp.sizing import Size

    plan = LaunchPlan(
        uid="raw", replica_id="raw-0", incarnation="raw", engine=EngineRef(name="llama.cpp", path=""), endpoint="",
        artifact=Artifact(format="ggufv2", path=str(model)),
    )  # fmt: skip
    options = LlamaCppOptions(context_length=CONTEXT, slots=SLOTS, threads=threads)
    params = common_params(xllamacpp, plan, options, Size(context_length=CONTEXT, slots=SLOTS), threads)
    params.hostnames, params.port, params.n_threads_http = ["127.0.0.1"], 0, SLOTS + 2
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()  # until the benchmark ends, however it ends
    os._exit(0)  # llama.cpp's threads would go on


def main() -> None:
    """Run one of the two until killed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("role", choices=("transformers", "llama"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    run = _run_transformers if arguments.role == "transformers" else _run_llama
    run(arguments.model, arguments.threads)


if __name__ == "__main__":
    main()
