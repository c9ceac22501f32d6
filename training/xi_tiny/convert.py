"""Converts xi-tiny from Hugging Face form to GGUF: f16 matrices, f32 vectors.

    python -m training.xi_tiny.convert --model HF_FOLDER --out FILE.gguf

Only for Qwen2 with tied embeddings and a tokenizer without unused ids, which is what `train.py` writes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType, TokenType
from safetensors.numpy import load_file

from .tokenizer import END_OF_TEXT, TURN_END

WHOLE_MODEL = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor: model.layers.0.mlp.up_proj.weight becomes blk.0.ffn_up.weight."""
    if name in WHOLE_MODEL:
        return WHOLE_MODEL[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{IN_LAYER[part]}.{kind}"


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def add_architecture(writer: GGUFWriter, config: dict[str, Any]) -> None:
    """Write the hyperparameters."""
    writer.add_type("model")
    writer.add_name("xi-tiny")
    writer.add_license("apache-2.0")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])


def add_tokenizer(writer: GGUFWriter, folder: Path) -> None:
    """Write tokens, merges, special tokens and chat template."""
    tokenizer = read_json(folder / "tokenizer.json")
    tokens = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(tokens, TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokens[number] for number in range(len(tokens))])
    writer.add_token_types([types[number] for number in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    ids = {token: number for number, token in tokens.items()}
    writer.add_bos_token_id(ids[END_OF_TEXT])
    writer.add_eos_token_id(ids[TURN_END])
    writer.add_pad_token_id(ids[END_OF_TEXT])
    writer.add_add_bos_token(False)
    writer.add_chat_template(read_json(folder / "tokenizer_config.json")["chat_template"])


def convert(folder: Path, out: Path) -> None:
    """Write the model in `folder` as the GGUF file `out`."""
    writer = GGUFWriter(out, "qwen2")
    add_architecture(writer, read_json(folder / "config.json"))
    add_tokenizer(writer, folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        # llama.cpp wants vectors (norms and biases) in f32. Qwen2 needs no permutation of its queries and keys.
        writer.add_tensor(gguf_name(name), tensor.astype(np.float32 if tensor.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out.chmod(0o644)


def main() -> None:
    """Convert as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder in Hugging Face form")
    parser.add_argument("--out", type=Path, required=True, help="GGUF file to write")
    options = parser.parse_args()
    convert(options.model, options.out)


if __name__ == "__main__":
    main()
