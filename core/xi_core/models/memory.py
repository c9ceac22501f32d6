"""What a model takes of memory: weights, cache, activations, overhead. Estimates from an `Architecture`; all sizes in bytes.

Used by placement (`cluster/reservation.py`), `xi cal-model-mem` and `xi plan`. Sources stand with each formula.
"""

from __future__ import annotations

import math

from msgspec import Struct

from xi_core.models.architecture import Architecture
from xi_core.models.weight_bits import bits_of, gguf_bits

OVERHEAD = 650 * 2**20
"""Of each device: its context, code and libraries' buffers. The value of gpu_poor (github.com/RahulSChand/gpu_poor), as in Xinference."""
STEP_TOKENS = 2048
"""Tokens that one step computes at most: the default of vLLM's `max_num_batched_tokens` and of llama.cpp's `n_batch`."""
BLOCK_VALUES = 2
"""Bytes of an activation: 16 bits."""


class Sharding(Struct, frozen=True, kw_only=True):
    """Over how many devices each layer is split (tensor parallel), and the layers are (pipeline parallel)."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def devices(self) -> int:
        return self.tensor * self.pipeline


WHOLE = Sharding()


class Estimate(Struct, frozen=True, kw_only=True):
    """Bytes of one device."""

    weights: int
    cache: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.overhead


class Parameters(Struct, frozen=True):
    """Numbers of weights: in the layers' matrices, and elsewhere (embeddings, output layer, norms, routers)."""

    matrices: int
    rest: int

    @property
    def total(self) -> int:
        return self.matrices + self.rest


def parameters(a: Architecture) -> Parameters:
    """The number of weights: the shapes of the matrices of a transformer layer, added up. Biases, which are few, are left out.

    Attention: "Attention Is All You Need" (arXiv:1706.03762) with grouped queries (arXiv:2305.13245); latent attention and experts:
    DeepSeek-V2 (arXiv:2405.04434), sections 2.1.2 and 2.2.
    """
    width = 3 if a.gated else 2
    attention, norms = _attention(a)
    matrices = a.layers * attention + (a.layers - a.moe_layers) * width * a.hidden * a.intermediate
    matrices += a.moe_layers * width * a.hidden * (a.experts * a.expert_intermediate + a.shared_intermediate)
    embeddings = a.vocab * a.hidden * (1 if a.tied or not a.has_head else 2)
    rest = embeddings + a.layers * (2 * a.hidden + norms) + a.hidden + a.moe_layers * a.hidden * a.experts
    return Parameters(matrices, rest)


def _attention(a: Architecture) -> tuple[int, int]:
    """Weights of one layer's attention: those in matrices, and those of norms within."""
    out = a.heads * a.values * a.hidden
    if not a.kv_lora_rank:
        return a.hidden * a.head_dim * (a.heads + a.kv_heads) + a.hidden * a.kv_heads * a.values + out, 0
    queries = a.heads * a.head_dim
    query = a.q_lora_rank * (a.hidden + queries) if a.q_lora_rank else a.hidden * queries
    latent = a.hidden * (a.kv_lora_rank + a.rope_dim) + a.kv_lora_rank * a.heads * (a.head_dim - a.rope_dim + a.values)
    return query + latent + out, a.q_lora_rank + a.kv_lora_rank


def weight_bytes(a: Architecture, model_format: str, quantization: str | None) -> int:
    """Bytes of all weights. Raises `InvalidRequest` for a quantization that isn't known in this format."""
    count = parameters(a)
    bits = gguf_bits(quantization, a.hidden, a.tied) if model_format == "ggufv2" else bits_of(model_format, quantization)
    return math.ceil((count.matrices * bits.matrices + count.rest * bits.rest) / 8)


def cache_bytes(a: Architecture, tokens: int, *, sequences: int = 1, bits: float = 16.0, sharding: Sharding = WHOLE) -> int:
    """Bytes that the keys and values of `sequences` of `tokens` tokens each take on one device.

    Per token and layer 2 x heads x size (PagedAttention, arXiv:2309.06180, section 3), of which tensor parallelism gives each device its
    heads, at least one; with latent attention the latent and one rotary key for all heads, on every device (arXiv:2405.04434, table 1).
    A layer with a sliding window keeps no more than the window (Mistral 7B, arXiv:2310.06825, section 2).
    """
    heads = math.ceil(a.kv_heads / sharding.tensor)
    values = a.kv_lora_rank + a.rope_dim if a.kv_lora_rank else heads * (a.head_dim + a.values)
    growing = a.layers - a.window_layers - a.stateless_layers
    kept = growing * tokens + a.window_layers * min(tokens, a.window)
    return math.ceil(sequences * kept * values * bits / 8 * _stage(a, sharding))


def activation_bytes(a: Architecture, tokens: int, *, sequences: int = 1, sharding: Sharding = WHOLE) -> int:
    """Bytes that one step computes with at once: a layer's input, its widest inner values, and the logits of each sequence in 32 bits.

    The sizes are those of arXiv:2205.05198, section 4.1, of one layer, since nothing is kept for a backward pass; attention is fused
    (arXiv:2205.14135), so that no term grows with the square of the tokens. A step has `STEP_TOKENS` at most.
    """
    step = min(tokens * sequences, STEP_TOKENS)
    attention = a.heads * (a.head_dim + a.values) + a.kv_heads * (a.head_dim + a.values)
    dense = (3 if a.gated else 2) * a.intermediate
    experts = 3 * (a.experts_per_token * a.expert_intermediate + a.shared_intermediate)
    widest = math.ceil(max(attention, dense if a.dense_layers or not a.experts else 0, experts) / sharding.tensor)
    logits = min(sequences, step) * a.vocab * 4 if a.has_head else 0
    return step * (2 * a.hidden + widest) * BLOCK_VALUES + math.ceil(logits / sharding.tensor)


def estimate(
    a: Architecture,
    weights: int,
    tokens: int,
    *,
    sequences: int = 1,
    cache_bits: float = 16.0,
    sharding: Sharding = WHOLE,
    overhead: int = OVERHEAD,
    cached: bool = True,
) -> Estimate:
    """What each device takes of a model with `weights` bytes in all that serves `sequences` of `tokens` tokens.

    `cached` is False for a model that reads each text once and generates none.
    """
    return Estimate(
        weights=math.ceil(weights / sharding.tensor * _stage(a, sharding)),
        cache=cache_bytes(a, tokens, sequences=sequences, bits=cache_bits, sharding=sharding) if cached else 0,
        activations=activation_bytes(a, tokens, sequences=sequences, sharding=sharding),
        overhead=overhead,
    )


def _stage(a: Architecture, sharding: Sharding) -> float:
    """The share of the layers that the largest stage of a pipeline has."""
    return math.ceil(a.layers / sharding.pipeline) / a.layers
