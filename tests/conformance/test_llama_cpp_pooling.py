"""The kits on the llama.cpp engine's embedders and rerankers: a small random BERT, which transformers runs as well, and xi-tiny."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xi_core.models.inspect import inspect
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.pooling_kit import EmbeddingKit, PoolingKit, RerankKit
from xi_core.testing.proofs import ClaimsKit
from xi_core.wire.plan import Artifact, LaunchPlan

pytest.importorskip("xllamacpp", reason="the llama.cpp engine's library is not installed")
torch = pytest.importorskip("torch", reason="the small models are made with it")
transformers = pytest.importorskip("transformers")

import tokenizers  # noqa: E402

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/xi-tiny-f16.gguf"
NUMBERS = json.loads((Path(__file__).parents[1] / "data/xi_tiny_numbers.json").read_text("utf-8"))
PLUGIN = "xi_plugins.engines.llama_cpp.plugin"
EMBEDDER = "xi_plugins.engines.llama_cpp.pooling:LlamaCppEmbedder"
RERANKER = "xi_plugins.engines.llama_cpp.pooling:LlamaCppReranker"
MEAN, CLS, LAST, RANK = 1, 2, 3, 4
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CONFIG: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
}
WHOLE = {
    "embeddings.word_embeddings.": "token_embd.",
    "embeddings.position_embeddings.": "position_embd.",
    "embeddings.token_type_embeddings.": "token_types.",
    "embeddings.LayerNorm.": "token_embd_norm.",
    "pooler.dense.": "cls.",
    "classifier.": "cls.output.",
}
IN_LAYER = {
    "attention.self.query.": "attn_q.",
    "attention.self.key.": "attn_k.",
    "attention.self.value.": "attn_v.",
    "attention.output.dense.": "attn_output.",
    "attention.output.LayerNorm.": "attn_output_norm.",
    "intermediate.dense.": "ffn_up.",
    "output.dense.": "ffn_down.",
    "output.LayerNorm.": "layer_output_norm.",
}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(given: Any) -> bytes:
    """A GGUF value with its type."""
    if isinstance(given, bool):
        return struct.pack("<I?", 7, given)
    if isinstance(given, int):
        return struct.pack("<II", 4, given)
    if isinstance(given, float):
        return struct.pack("<If", 6, given)
    if isinstance(given, str):
        return struct.pack("<I", 8) + text(given)
    kind = 5 if isinstance(given[0], int) else 8
    return struct.pack("<IIQ", 9, kind, len(given)) + b"".join(value(one)[4:] for one in given)


def write_gguf(path: Path, values: dict[str, Any], tensors: dict[str, Any]) -> Path:
    infos, data = b"", b""
    for name, tensor in tensors.items():
        shape = tuple(reversed(tensor.shape))
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += tensor.contiguous().float().numpy().astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))
    head += b"".join(text(key) + value(one) for key, one in values.items()) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def gguf_name(name: str) -> str:
    name = name.removeprefix("bert.")
    layer, rest = "", name
    if name.startswith("encoder.layer."):
        number, rest = name.removeprefix("encoder.layer.").split(".", 1)
        layer = f"blk.{number}."
    table = IN_LAYER if layer else WHOLE
    prefix = next(one for one in table if rest.startswith(one))
    return layer + table[prefix] + rest.removeprefix(prefix)


def save_bert(folder: Path, pooling: int) -> Path:
    """A random BERT in Hugging Face's form, and as `model.gguf` beside it."""
    torch.manual_seed(3)
    ranks = pooling == RANK
    library = transformers.AutoModelForSequenceClassification if ranks else transformers.AutoModel
    model = library.from_config(transformers.BertConfig(**CONFIG, **({"num_labels": 1} if ranks else {})))
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)
    model.save_pretrained(folder)
    tokens = [*SPECIAL, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: index for index, token in enumerate(tokens)}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    backend.save(str(folder / "tokenizer.json"))
    values = {
        "general.architecture": "bert", "bert.block_count": 2, "bert.context_length": 160, "bert.embedding_length": 64,
        "bert.feed_forward_length": 96, "bert.attention.head_count": 4, "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False, "bert.pooling_type": pooling, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3] * 4 + [1] * 256, "tokenizer.ggml.merges": ["\u0123 \u0124"],
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.token_type_count": 2,
    }  # fmt: skip
    tensors = {gguf_name(name): tensor for name, tensor in model.state_dict().items() if ranks or "pooler" not in name}
    return write_gguf(folder / "model.gguf", values, tensors)


def with_pooling(path: Path, kind: int) -> Path:
    """A copy of xi-tiny whose header names a pooling. The second pair fills up to the 32 bytes that tensors are aligned to."""
    whole = XI_TINY.read_bytes()
    magic, version, tensors, pairs = struct.unpack("<4sIQQ", whole[:24])
    more = text("qwen2.pooling_type") + value(kind) + text("test.filler.xx") + value(0)
    assert len(more) % 32 == 0
    path.write_bytes(struct.pack("<4sIQQ", magic, version, tensors, pairs + 2) + more + whole[24:])
    return path


class _OnModel(PoolingKit):
    """The plan names a file that is made first."""

    pooling: int

    @classmethod
    def make(cls, folder: Path) -> Path:
        return save_bert(folder, cls.pooling)

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
        transformers.utils.logging.disable_progress_bar()
        path = cls.make(tmp_path_factory.mktemp("model"))
        with Harness(on(cls.plan, path)) as harness:
            yield harness


def on(plan: LaunchPlan, path: Path) -> LaunchPlan:
    return msgspec.structs.replace(plan, artifact=Artifact(format="ggufv2", path=str(path)))


class TestBert(_OnModel, EmbeddingKit):
    plugin = PLUGIN
    plan = plan_for(EMBEDDER, "nowhere", "ggufv2", slots=4)
    pooling = MEAN
    tolerance = 1e-4


class TestBertCls(TestBert):
    pooling = CLS


class TestXiTinyMean(TestBert):
    """A decoder with a cache, in half precision."""

    pooling = MEAN
    tolerance = 2e-2
    reference = NUMBERS["vectors"]
    reference_tolerance = 2e-2

    @classmethod
    def make(cls, folder: Path) -> Path:
        return with_pooling(folder / "model.gguf", cls.pooling)


class TestXiTinyLast(TestXiTinyMean):
    pooling = LAST
    reference = NUMBERS["last_vectors"]


class TestBertReranker(_OnModel, RerankKit):
    plugin = PLUGIN
    plan = plan_for(RERANKER, "nowhere", "ggufv2", slots=4)
    pooling = RANK
    tolerance = 1e-3


@pytest.mark.parametrize(("pooling", "mode"), [(MEAN, "mean"), (CLS, "cls")])
def test_vectors_equal_those_of_transformers(tmp_path: Path, pooling: int, mode: str) -> None:
    path = save_bert(tmp_path, pooling)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": mode}))
    body = {"input": list(EmbeddingKit.texts)}
    with Harness(plan_for("xi_plugins.engines.transformers.pooling:TransformersEmbedder", str(tmp_path), "pytorch", threads=1)) as harness:
        expected = harness.submit(EMBEDDINGS, body).answer().body
    with Harness(plan_for(EMBEDDER, str(path), "ggufv2", slots=4)) as harness:
        found = harness.submit(EMBEDDINGS, body).answer().body
    assert found["usage"] == expected["usage"]
    for one, other in zip(found["data"], expected["data"], strict=True):
        assert max(abs(a - b) for a, b in zip(one["embedding"], other["embedding"], strict=True)) < 1e-3


def test_inspection_tells_the_type(tmp_path: Path) -> None:
    assert [inspect(with_pooling(tmp_path / f"{kind}.gguf", kind)).model_type for kind in (0, MEAN, LAST, RANK)] == [
        "LLM", "embedding", "embedding", "rerank",
    ]  # fmt: skip


class TestLlamaCppPoolingClaims(ClaimsKit):
    plugin = PLUGIN
    engine = EMBEDDER
    routes = (EMBEDDINGS, RERANK)
