"""`Architecture`: the figures of a transformer from which its memory follows. Read from `config.json` or GGUF, or told by a family.

Used by `memory.py`. A model of which the files don't tell enough has none: memory is then unknown, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from xi_core.models import gguf

TIED_BY_DEFAULT = ("gemma", "gpt2", "opt", "bloom", "cohere", "mpt", "smollm", "falcon", "gpt_bigcode")
"""Model types (by their beginning) that share input and output embeddings where the configuration doesn't say."""
UNGATED = ("gpt2", "opt", "bloom", "gpt_neox", "gptj", "phi-msft", "starcoder2", "falcon", "mpt", "bert", "xlm-roberta", "roberta", "nomic")
"""Model types whose feed-forward layers have two matrices, not three (no gate)."""
LARGEST = 1 << 31
"""No figure of a model comes near it."""
HEADLESS = ("bert", "xlm-roberta", "roberta", "nomic", "new")
"""Model types without an output layer over the vocabulary."""


class Architecture(Struct, kw_only=True, frozen=True):
    """Figures of a decoder or encoder. 0 stands for `none`: no experts, no latent attention, no window."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of a dense layer's feed-forward part."""
    vocab: int
    context: int = 0
    """Most tokens that it was made for; 0: not told."""
    value_dim: int = 0
    """Size of a head's value; 0: as `head_dim`."""
    tied: bool = False
    """Input and output embeddings are one matrix."""
    gated: bool = True
    """The feed-forward part has three matrices (gate, up, down), not two."""
    has_head: bool = True
    """It has an output layer over the vocabulary."""
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    """Width of one expert."""
    shared_intermediate: int = 0
    """Width of the expert, or experts together, that every token passes."""
    dense_layers: int = 0
    """Of a model with experts: layers that have none."""
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    """Multi-head latent attention: size of the latent that is cached in place of keys and values."""
    rope_dim: int = 0
    """Multi-head latent attention: the part of each head's key that carries the position; it is cached once for all heads."""
    window: int = 0
    """Tokens that a layer with a sliding window keeps."""
    window_layers: int = 0
    stateless_layers: int = 0
    """Layers whose cache doesn't grow with the tokens (linear attention, Mamba)."""

    @property
    def values(self) -> int:
        """Size of a head's value."""
        return self.value_dim or self.head_dim

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture | None:
        """The figures in a Hugging Face `config.json`; None where it lacks one that counts. Its `text_config` goes before it."""
        inner = config.get("text_config")
        return _from_config({**config, **inner} if isinstance(inner, Mapping) else config)

    @classmethod
    def from_gguf(cls, metadata: gguf.Metadata) -> Architecture | None:
        """The figures in a GGUF file's metadata; None where it lacks one that counts."""
        return _from_gguf(metadata)


def _from_config(config: Mapping[str, Any]) -> Architecture | None:
    kind = str(config.get("model_type") or "")
    layers = _first(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    hidden = _first(config, "hidden_size", "n_embd", "d_model", "dim")
    heads = _first(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    vocab = _first(config, "vocab_size", "padded_vocab_size")
    if not (layers and hidden and heads and vocab):
        return None
    experts = _first(config, "n_routed_experts", "num_local_experts", "num_experts")
    dense = _first(config, "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff") or 4 * hidden
    expert = _first(config, "moe_intermediate_size") or dense
    rope, nope = _first(config, "qk_rope_head_dim"), _first(config, "qk_nope_head_dim")
    latent = _first(config, "kv_lora_rank")
    stateless, windowed = _layer_kinds(config, layers)
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(config) or heads,
        head_dim=(nope + rope) if latent else _first(config, "head_dim", "kv_channels") or hidden // heads,
        intermediate=dense,
        vocab=vocab,
        context=_first(config, "max_position_embeddings", "n_positions", "seq_length", "max_sequence_length"),
        value_dim=_first(config, "v_head_dim") if latent else 0,
        tied=bool(config.get("tie_word_embeddings", kind.startswith(TIED_BY_DEFAULT))),
        gated=not kind.startswith(UNGATED),
        has_head=kind not in HEADLESS,
        experts=experts,
        experts_per_token=_first(config, "num_experts_per_tok", "num_experts_per_token", "moe_topk") if experts else 0,
        expert_intermediate=expert if experts else 0,
        shared_intermediate=(_first(config, "shared_expert_intermediate_size") or _first(config, "n_shared_experts") * expert)
        if experts
        else 0,
        dense_layers=_dense_layers(config, layers) if experts else 0,
        q_lora_rank=_first(config, "q_lora_rank") if latent else 0,
        kv_lora_rank=latent,
        rope_dim=rope if latent else 0,
        window=_first(config, "sliding_window") if windowed else 0,
        window_layers=windowed,
        stateless_layers=stateless,
    )


def _first(config: Mapping[str, Any], *names: str) -> int:
    """The first of these keys that holds a positive whole number within reason; 0 where none does."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < LARGEST:
            return value
    return 0


def _kv_heads(config: Mapping[str, Any]) -> int:
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    return _first(config, "num_key_value_heads", "multi_query_group_num", "num_kv_heads", "n_head_kv")


def _dense_layers(config: Mapping[str, Any], layers: int) -> int:
    """Layers without experts: the first ones (DeepSeek, GLM), those listed (Qwen), or all but each n-th."""
    first = _first(config, "first_k_dense_replace")
    listed = config.get("mlp_only_layers")
    step = _first(config, "decoder_sparse_step", "interleave_moe_layer_step") or 1
    sparse = layers // step
    return min(layers, max(first, layers - sparse, len(listed) if isinstance(listed, list) else 0))


def _layer_kinds(config: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """How many layers keep no growing cache, and how many a window of tokens only."""
    kinds = config.get("layer_types")
    window = _first(config, "sliding_window")
    if config.get("use_sliding_window") is False:
        window = 0
    if isinstance(kinds, list) and kinds:
        stateless = sum(kind in ("linear_attention", "mamba", "recurrent") for kind in kinds)
        return stateless, sum(kind in ("sliding_attention", "chunked_attention") for kind in kinds) if window else 0
    if not window:
        return 0, 0
    pattern = _first(config, "sliding_window_pattern", "_sliding_window_pattern")
    if not pattern and str(config.get("model_type", "")).startswith("gemma2"):
        pattern = 2
    return 0, layers - layers // pattern if pattern else layers


def _from_gguf(metadata: gguf.Metadata) -> Architecture | None:
    layers, hidden = metadata.number("block_count"), metadata.number("embedding_length")
    heads, kv_heads = metadata.numbers("attention.head_count"), metadata.numbers("attention.head_count_kv")
    vocab = metadata.values.get("tokenizer.ggml.tokens")
    if not (layers and hidden and heads and isinstance(vocab, int)):
        return None
    most = int(max(heads))
    latent = metadata.number("attention.kv_lora_rank")
    rope = metadata.number("rope.dimension_count")
    key = metadata.number("attention.key_length_mla") or metadata.number("attention.key_length") or hidden // max(1, most)
    value = metadata.number("attention.value_length_mla") or metadata.number("attention.value_length") or key
    experts, expert = metadata.number("expert_count"), metadata.number("expert_feed_forward_length")
    dense = int(max(metadata.numbers("feed_forward_length"), default=0)) or expert or 4 * hidden
    window = metadata.number("attention.sliding_window")
    return Architecture(
        layers=layers,
        hidden=hidden,
        heads=most,
        kv_heads=int(max(kv_heads, default=0)) or most,
        head_dim=key,
        intermediate=dense,
        vocab=vocab,
        context=metadata.number("context_length"),
        value_dim=value if value != key else 0,
        has_head=not metadata.numbers("pooling_type"),
        experts=experts,
        experts_per_token=metadata.number("expert_used_count"),
        expert_intermediate=(expert or dense) if experts else 0,
        shared_intermediate=metadata.number("expert_shared_count") * expert if experts else 0,
        dense_layers=metadata.number("leading_dense_block_count") if experts else 0,
        q_lora_rank=metadata.number("attention.q_lora_rank") if latent else 0,
        kv_lora_rank=latent,
        rope_dim=rope if latent else 0,
        window=window,
        window_layers=_gguf_window_layers(metadata.architecture, layers) if window else 0,
        stateless_layers=sum(count == 0 for count in kv_heads[:layers]) if len(kv_heads) > 1 else 0,
    )


def _gguf_window_layers(architecture: str, layers: int) -> int:
    """The files name the window, not its layers: llama.cpp has the pattern in its code (`set_swa_pattern` in `llama-model.cpp`)."""
    pattern = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2, "cohere2": 4}.get(architecture)
    return layers - layers // pattern if pattern else 0
