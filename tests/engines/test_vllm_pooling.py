"""Embeddings and rerank by vLLM's pooling runner, on small random models made here. `make test-engine-vllm` runs this, in minutes."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make test-engine-vllm` builds an environment for it", allow_module_level=True)

import tokenizers
import torch
import transformers

from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.pooling_kit import EmbeddingKit, PoolingKit, RerankKit
from xi_core.testing.proofs import ClaimsKit

pytestmark = [pytest.mark.engine("vllm"), pytest.mark.slow, pytest.mark.timeout(300)]

PLUGIN = "xi_plugins.engines.vllm.plugin"
EMBEDDER = "xi_plugins.engines.vllm.pooling:VllmEmbedder"
RERANKER = "xi_plugins.engines.vllm.pooling:VllmReranker"
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
NUMBERS = json.loads((Path(__file__).parents[1] / "data/xi_tiny_numbers.json").read_text("utf-8"))
OPTIONS: dict[str, Any] = {"dtype": "float32", "enforce_eager": True}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module", autouse=True)
def little_cache() -> Iterator[None]:
    """And one thread: the model is tiny, and threads that wait for each other cost more than they compute, most of all on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind"), ("OMP_NUM_THREADS", "1")):
            patch.setenv(name, value)
        yield


def save(directory: Path, library: Any, **fields: Any) -> Path:
    """A random BERT whose outputs depend much on its inputs, with a tokenizer of bytes that would cut what is long."""
    torch.manual_seed(3)
    model = library.from_config(transformers.BertConfig(**SHAPE, **fields))
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)
    model.save_pretrained(directory)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    backend.enable_truncation(8)
    backend.save(str(directory / "tokenizer.json"))
    words = {"pad_token": "[PAD]", "model_max_length": int(1e30), "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(words))
    return directory


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("embedder"), transformers.AutoModel)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("reranker"), transformers.AutoModelForSequenceClassification, num_labels=1)


def serving(kit: type[PoolingKit], engine: str, model: Path) -> Iterator[Harness]:
    kit.plan = plan_for(engine, str(model), "pytorch", **OPTIONS)
    with Harness(kit.plan) as harness:
        yield harness


class TestVllmEmbeddings(EmbeddingKit):
    plugin = PLUGIN
    plan = plan_for(EMBEDDER, "made-by-the-fixture", "pytorch")

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, embedder: Path) -> Iterator[Harness]:
        yield from serving(cls, EMBEDDER, embedder)


class TestVllmDecoderEmbeddings(EmbeddingKit):
    """A language model as an embedding model: the last token's state."""

    plugin = PLUGIN
    plan = plan_for(EMBEDDER, str(XI_TINY), "pytorch", **OPTIONS)
    reference = NUMBERS["last_vectors"]


class TestVllmRerank(RerankKit):
    plugin = PLUGIN
    plan = plan_for(RERANKER, "made-by-the-fixture", "pytorch")

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, reranker: Path) -> Iterator[Harness]:
        yield from serving(cls, RERANKER, reranker)


class TestVllmPoolingClaims(ClaimsKit):
    plugin = PLUGIN
    engine = EMBEDDER
    routes = (EmbeddingKit.route, RerankKit.route)
