"""Embedding models and rerankers from `xi launch` to OpenAI's and Xinference's clients."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from xinference_client import RESTfulClient

from xi_core.testing.server import RunningServer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tokenizers  # noqa: E402

pytestmark = pytest.mark.engine("transformers")

DOCUMENTS = ["a cat", "the capital of France is Paris", "rain"]


def save(directory: Path, config: Any, library: Any) -> Path:
    """A random model, with a tokenizer of bytes."""
    torch.manual_seed(3)
    model = library.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)
    model.save_pretrained(directory)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: index for index, token in enumerate(["[PAD]", *alphabet])}, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def models(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`embedder` and `ranker`, launched on the session's server and gone afterwards."""
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("pooling")
    shape = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    save(folder / "embedder", transformers.BertConfig(**shape), transformers.AutoModel)
    save(folder / "ranker", transformers.BertConfig(**shape, num_labels=1), transformers.AutoModelForSequenceClassification)
    for name, kind in (("embedder", "embedding"), ("ranker", "rerank")):
        done = server.xi("launch", str(folder / name), "-t", kind)
        assert done.returncode == 0, done.stderr
        assert "xi chat" not in done.stderr
    yield folder
    for name in ("embedder", "ranker"):
        server.xi("terminate", name)


@pytest.fixture
def client(server: RunningServer, models: Path) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.endpoint}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_openais_client(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embedder", input=["Hi", "there"])  # this client asks for base64 and decodes it
    assert [len(entry.embedding) for entry in answer.data] == [32, 32]
    assert [entry.index for entry in answer.data] == [0, 1]
    assert (answer.model, answer.usage.prompt_tokens, answer.usage.total_tokens) == ("embedder", 7, 7)
    plain = client.embeddings.create(model="embedder", input=["Hi", "there"], encoding_format="float")
    assert plain.data[0].embedding == answer.data[0].embedding
    raw: Any = client.embeddings.create(model="embedder", input="Hi", encoding_format="base64").data[0].embedding
    assert list(struct.unpack("<32f", base64.b64decode(raw))) == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert len(client.embeddings.create(model="embedder", input=[[1, 2], [3]], dimensions=8).data[1].embedding) == 8


def test_2048_texts_in_one_request(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="embedder", input=[f"text {i % 50}" for i in range(2048)], encoding_format="float")
    assert len(answer.data) == 2048
    assert answer.data[50].embedding == pytest.approx(answer.data[0].embedding, abs=1e-5)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="embedder", input=["x"] * 2049)
    assert refused.value.param == "input"


def test_the_wrong_endpoint(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="it serves: /v1/embeddings"):
        client.chat.completions.create(model="embedder", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        client.embeddings.create(model="xi-tiny", input="Hi")
    with pytest.raises(openai.NotFoundError, match="it serves: /v1/rerank"):
        client.embeddings.create(model="ranker", input="Hi")


def test_xinferences_client(server: RunningServer, models: Path) -> None:
    client = RESTfulClient(server.endpoint)
    found = client.get_model("embedder").create_embedding(["Hi", "there"])
    assert [len(entry["embedding"]) for entry in found["data"]] == [32, 32]
    ranked = client.get_model("ranker").rerank(DOCUMENTS, "capital of France", top_n=2, return_documents=True)
    scores = [result["relevance_score"] for result in ranked["results"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert ranked["results"][0]["document"] == {"text": DOCUMENTS[ranked["results"][0]["index"]]}
    assert client.list_models()["ranker"]["model_type"] == "rerank"


@pytest.mark.parametrize(
    ("name", "type", "right"), [("embedder", "LLM", "embedding"), ("embedder", "rerank", "embedding"), ("ranker", "LLM", "rerank")]
)
def test_the_wrong_type(server: RunningServer, models: Path, name: str, type: str, right: str) -> None:
    done = server.xi("launch", str(models / name), "-t", type, "-u", "other")
    assert done.returncode == 1
    assert f"is a model of type {right}, not {type}: launch it with model type {right} (xi launch -t {right})" in done.stderr.replace(
        "\n", " "
    )


def test_a_type_that_nobody_serves(server: RunningServer, models: Path) -> None:
    done = server.xi("launch", str(models / "embedder"), "-t", "video")
    assert done.returncode == 1
    assert "LLM, embedding, rerank" in done.stderr.replace("\n", " ")
