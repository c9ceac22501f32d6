"""Figures of well-known models, from the `config.json` that each publishes: they stand in for a model of which only the size is known."""

from __future__ import annotations

import math

from xi_core.models.architecture import Architecture


def _dense(
    layers: int, hidden: int, heads: int, kv_heads: int, intermediate: int, vocab: int, context: int, tied: bool = False
) -> Architecture:
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=hidden // heads,
        intermediate=intermediate,
        vocab=vocab,
        context=context,
        tied=tied,
    )


DEEPSEEK_V3 = Architecture(
    layers=61, hidden=7168, heads=128, kv_heads=128, head_dim=192, value_dim=128, intermediate=18432, vocab=129280, context=163840,
    experts=256, experts_per_token=8, expert_intermediate=2048, shared_intermediate=2048, dense_layers=3,
    q_lora_rank=1536, kv_lora_rank=512, rope_dim=64,
)  # fmt: skip
"""DeepSeek V3 and R1, without the layer that predicts a second token."""

TYPICAL = {
    "Qwen2.5-0.5B": (0.494, _dense(24, 896, 14, 2, 4864, 151936, 32768, tied=True)),
    "Qwen2.5-1.5B": (1.54, _dense(28, 1536, 12, 2, 8960, 151936, 32768, tied=True)),
    "Qwen2.5-3B": (3.09, _dense(36, 2048, 16, 2, 11008, 151936, 32768, tied=True)),
    "Qwen2.5-7B": (7.62, _dense(28, 3584, 28, 4, 18944, 152064, 32768)),
    "Llama-3.1-8B": (8.03, _dense(32, 4096, 32, 8, 14336, 128256, 131072)),
    "Qwen2.5-14B": (14.8, _dense(48, 5120, 40, 8, 13824, 152064, 32768)),
    "Qwen2.5-32B": (32.8, _dense(64, 5120, 40, 8, 27648, 152064, 32768)),
    "Llama-3.1-70B": (70.6, _dense(80, 8192, 64, 8, 28672, 128256, 131072)),
    "Llama-3.1-405B": (405.9, _dense(126, 16384, 128, 8, 53248, 128256, 131072)),
    "DeepSeek-V3": (671.0, DEEPSEEK_V3),
}
"""Name → (billions of weights, figures)."""


def nearest(billions: float) -> tuple[str, Architecture]:
    """The model whose size is nearest, by ratio."""
    name = min(TYPICAL, key=lambda one: abs(math.log(TYPICAL[one][0] / billions)))
    return name, TYPICAL[name][1]
