"""Embedding models and rerankers of the engine `transformers`, on small random models made here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tokenizers  # noqa: E402

from xi_core.engine.pooling import PoolingInput  # noqa: E402
from xi_core.errors import ArtifactError, EngineError, UnknownOption  # noqa: E402
from xi_core.models.inspect import inspect  # noqa: E402
from xi_core.testing.harness import Harness, plan_for  # noqa: E402
from xi_core.testing.pooling_kit import EmbeddingKit, RerankKit  # noqa: E402
from xi_core.testing.proofs import ClaimsKit  # noqa: E402
from xi_core.wire.plan import Artifact, LaunchPlan  # noqa: E402
from xi_plugins.engines.transformers.pooling import TransformersEmbedder, TransformersReranker  # noqa: E402
from xi_plugins.engines.transformers.sentence import read_recipe  # noqa: E402

pytestmark = pytest.mark.engine("transformers")

EMBEDDER = "xi_plugins.engines.transformers.pooling:TransformersEmbedder"
RERANKER = "xi_plugins.engines.transformers.pooling:TransformersReranker"
PLUGIN = "xi_plugins.engines.transformers.plugin"
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
VECTORS = json.loads((Path(__file__).parents[1] / "data/xi_tiny_numbers.json").read_text("utf-8"))["vectors"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TEXTS = ("a", "the cat sat on the mat", "你好 😀", "zebra " * 9, "Paris")
SHAPE: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "pad_token_id": 0,
}
BERT = transformers.BertConfig(**SHAPE)
ROBERTA = transformers.RobertaConfig(**{**SHAPE, "pad_token_id": 1})
QWEN = transformers.Qwen2Config(**SHAPE, num_key_value_heads=2)


def save(directory: Path, config: Any, library: Any = transformers.AutoModel, pad: int = 0) -> Path:
    """A random model of `config` whose outputs depend much on their inputs, with a tokenizer of bytes."""
    torch.manual_seed(3)
    model = library.from_config(config)
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(4)
    model.save_pretrained(directory)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = SPECIAL if pad == 0 else ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    vocabulary = {token: index for index, token in enumerate([*names, *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    backend.enable_truncation(8)  # as many directories have it: what is too long must be refused all the same
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "model_max_length": int(1e30)}))
    return directory


def add_recipe(directory: Path, *, prompt: str = "", dense: bool = False, most: int = 100, **modes: Any) -> Path:
    """sentence-transformers' files."""
    steps = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    kinds = [
        {"idx": i, "name": str(i), "path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"}
        for i, k in enumerate(steps)
    ]
    (directory / "modules.json").write_text(json.dumps(kinds))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": most, "do_lower_case": False}))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32, **modes}))
    if prompt:
        text = {"prompts": {"query": prompt, "other": "x"}, "default_prompt_name": "query"}
        (directory / "config_sentence_transformers.json").write_text(json.dumps(text))
    if dense:
        from safetensors.torch import save_file

        folder = directory / "2_Dense"
        folder.mkdir()
        torch.manual_seed(5)
        save_file({"linear.weight": torch.randn(24, 32), "linear.bias": torch.randn(24)}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(
            json.dumps({"in_features": 32, "out_features": 24, "bias": True, "activation_function": "torch.nn.modules.activation.Tanh"})
        )
    return directory


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    transformers.utils.logging.disable_progress_bar()
    yield
    torch.set_num_threads(before)


def plan(path: str, directory: Path, **options: Any) -> LaunchPlan:
    return plan_for(path, str(directory), "pytorch", **{"threads": 1, **options})


def load(directory: Path, **options: Any) -> TransformersEmbedder:
    engine = TransformersEmbedder()
    engine.load(plan(EMBEDDER, directory, **options), lambda stage, share: None)
    return engine


def vectors(engine: TransformersEmbedder, texts: tuple[str, ...] = TEXTS) -> Any:
    rows = engine.embed(engine.encode(list(texts)))
    return torch.stack([torch.frombuffer(bytearray(row), dtype=torch.float32) for row in rows])


def in_process(directory: Path, mode: str, texts: tuple[str, ...] = TEXTS, after: Any = None) -> Any:
    """What the library itself gives, text by text."""
    model = transformers.AutoModel.from_pretrained(directory).eval()
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.no_truncation()
    rows = []
    for text in texts:
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([backend.encode(text).ids])).last_hidden_state[0]
        row = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1], "max": hidden.amax(0)}[mode]
        rows.append(row if after is None else after(row))
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


# ---- the kits -----------------------------------------------------------------------------------


class _OnModel:
    """The kits' plans name a directory that is made first."""

    config: Any
    library: Any = transformers.AutoModel

    @pytest.fixture(scope="class")
    @classmethod
    def harness(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
        directory = save(tmp_path_factory.mktemp("model"), cls.config, cls.library, pad=cls.config.pad_token_id)
        ours: LaunchPlan = cls.plan  # type: ignore[attr-defined]
        with Harness(msgspec.structs.replace(ours, artifact=Artifact(format="pytorch", path=str(directory)))) as harness:
            yield harness


class TestBert(_OnModel, EmbeddingKit):
    plugin = PLUGIN
    plan = plan(EMBEDDER, Path("nowhere"))
    config = BERT


class TestQwen2(_OnModel, EmbeddingKit):
    plugin = PLUGIN
    plan = plan(EMBEDDER, Path("nowhere"))
    config = QWEN


class TestRoberta(_OnModel, EmbeddingKit):
    plugin = PLUGIN
    plan = plan(EMBEDDER, Path("nowhere"))
    config = ROBERTA


class TestXiTiny(EmbeddingKit):
    plugin = PLUGIN
    plan = plan(EMBEDDER, XI_TINY)
    reference = VECTORS


class TestBertReranker(_OnModel, RerankKit):
    plugin = PLUGIN
    plan = plan(RERANKER, Path("nowhere"))
    config = transformers.BertConfig(**SHAPE, num_labels=1)
    library = transformers.AutoModelForSequenceClassification


class TestQwen2Reranker(_OnModel, RerankKit):
    plugin = PLUGIN
    plan = plan(RERANKER, Path("nowhere"))
    config = transformers.Qwen2Config(**SHAPE, num_key_value_heads=2, num_labels=1)
    library = transformers.AutoModelForSequenceClassification


# ---- vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BERT, ROBERTA, QWEN], ids=lambda config: config.model_type)
def test_without_a_recipe_the_mean(tmp_path: Path, config: Any) -> None:
    save(tmp_path, config, pad=config.pad_token_id)
    assert torch.allclose(vectors(load(tmp_path)), in_process(tmp_path, "mean"), atol=1e-5)


@pytest.mark.parametrize(
    ("modes", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "lasttoken"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({}, "mean"),
    ],
)
def test_the_models_own_pooling(tmp_path: Path, modes: dict[str, Any], mode: str) -> None:
    add_recipe(save(tmp_path, QWEN), **modes)
    assert torch.allclose(vectors(load(tmp_path)), in_process(tmp_path, mode), atol=1e-5)


def test_a_default_prompt_comes_before_every_text(tmp_path: Path) -> None:
    add_recipe(save(tmp_path, BERT), prompt="query: ", pooling_mode_mean_tokens=True)
    prompted = tuple(f"query: {text}" for text in TEXTS)
    assert torch.allclose(vectors(load(tmp_path)), in_process(tmp_path, "mean", prompted), atol=1e-5)


def test_dense_layers_come_after_the_pooling(tmp_path: Path) -> None:
    add_recipe(save(tmp_path, BERT), dense=True, pooling_mode_cls_token=True)
    torch.manual_seed(5)
    weight, bias = torch.randn(24, 32), torch.randn(24)
    engine = load(tmp_path)
    assert engine.dimensions == 24
    assert torch.allclose(vectors(engine), in_process(tmp_path, "cls", after=lambda row: torch.tanh(weight @ row + bias)), atol=1e-5)


def test_an_end_token_that_the_settings_add(tmp_path: Path) -> None:
    save(tmp_path, QWEN)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "[UNK]", "add_eos_token": True}))
    assert [one.ids[-2:] for one in load(tmp_path).encode(["a", "b"])] == [[3, 1], [3, 1]]


def test_bfloat16_is_near(tmp_path: Path) -> None:
    save(tmp_path, BERT)
    near = (vectors(load(tmp_path, dtype="bfloat16")) * in_process(tmp_path, "mean")).sum(-1)
    assert near.min() > 0.99


# ---- lengths ------------------------------------------------------------------------------------


def test_the_longest_input(tmp_path: Path) -> None:
    def context(config: Any, **options: Any) -> int:
        save(tmp_path, config, pad=config.pad_token_id)
        return TransformersEmbedder().load(plan(EMBEDDER, tmp_path, **options), lambda stage, share: None).context_length

    assert context(BERT) == 160
    assert context(ROBERTA) == 158, "RoBERTa's first two positions are nobody's"
    assert context(BERT, context_length=50) == 50
    add_recipe(tmp_path, most=64)
    assert context(BERT) == 64
    assert context(BERT, context_length=160) == 160, "more than its makers advise, as far as the model can"
    with pytest.raises(UnknownOption, match="160"):
        context(BERT, context_length=161)


@pytest.mark.parametrize("config", [BERT, ROBERTA, QWEN], ids=lambda config: config.model_type)
def test_the_whole_length_can_be_used(tmp_path: Path, config: Any) -> None:
    save(tmp_path, config, pad=config.pad_token_id)
    engine = TransformersEmbedder()
    most = engine.load(plan(EMBEDDER, tmp_path), lambda stage, share: None).context_length
    assert len(engine.embed([PoolingInput([5] * most), PoolingInput([6])])) == 2


# ---- rerankers ----------------------------------------------------------------------------------


def scores(directory: Path, **options: Any) -> list[float]:
    engine = TransformersReranker()
    engine.load(plan(RERANKER, directory, **options), lambda stage, share: None)
    return engine.score(engine.encode_pairs("which animal?", list(TEXTS)))


def test_scores_are_those_of_the_model(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SHAPE, num_labels=1)
    save(tmp_path, config, transformers.AutoModelForSequenceClassification)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.no_truncation()
    logits = []
    for text in TEXTS:
        pair = backend.encode("which animal?", text)
        assert set(pair.type_ids) == {0, 1}
        with torch.inference_mode():
            logits.append(float(model(torch.tensor([pair.ids]), token_type_ids=torch.tensor([pair.type_ids])).logits[0, 0]))
    assert scores(tmp_path) == pytest.approx(torch.sigmoid(torch.tensor(logits)).tolist(), abs=1e-5)
    settings = json.loads((tmp_path / "config.json").read_text())
    for names in (
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.0"}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | names))
        assert scores(tmp_path) == pytest.approx(logits, abs=1e-5)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"sbert_ce_default_activation_function": "torch.nn.ReLU"}))
    with pytest.raises(ArtifactError, match="ReLU"):
        scores(tmp_path)


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    save(tmp_path, transformers.BertConfig(**SHAPE, num_labels=3), transformers.AutoModelForSequenceClassification)
    with pytest.raises(ArtifactError, match="3 labels"):
        scores(tmp_path)


# ---- what is wrong ------------------------------------------------------------------------------


def test_options_of_text_generation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownOption, match="prefill_chunk"):
        load(save(tmp_path, BERT), prefill_chunk=64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "modules.json").write_text('[{"type": "a.CNN", "path": ""}]'), "CNN"),
        (lambda d: (d / "modules.json").write_text('[{"type": "a.Pooling", "path": "../.."}]'), "outside"),
        (lambda d: (d / "modules.json").write_text("{"), "damaged"),
        (lambda d: (d / "1_Pooling/config.json").write_text('{"pooling_mode_weightedmean_tokens": true}'), "weightedmean"),
        (lambda d: (d / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}'), "and"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer"),
        (lambda d: (d / "config.json").unlink(), r"config\.json"),
        (lambda d: (d / "model.safetensors").unlink(), "safetensors"),
        (
            lambda d: (d / "config.json").write_text(
                json.dumps(json.loads((d / "config.json").read_text()) | {"auto_map": {"AutoModel": "code.Model"}})
            ),
            "code of its own",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: Any, words: str) -> None:
    change(add_recipe(save(tmp_path, BERT), pooling_mode_mean_tokens=True))
    with pytest.raises(ArtifactError, match=words):
        load(tmp_path)


def test_weights_that_are_missing(tmp_path: Path) -> None:
    save(tmp_path, BERT)
    wider = json.loads((tmp_path / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(wider))
    with pytest.raises(ArtifactError, match="lacks"):
        load(tmp_path)


def test_a_failing_batch_is_an_error_of_its_own(tmp_path: Path) -> None:
    engine = load(save(tmp_path, BERT))
    with pytest.raises(EngineError, match="failed on a batch of 1 inputs"):
        engine.embed([PoolingInput([5] * 161)])
    assert len(vectors(engine)) == len(TEXTS)


def test_a_token_that_only_the_tokenizer_knows_costs_its_request_only(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(save(tmp_path, BERT) / "tokenizer.json"))
    backend.add_special_tokens(["<|added later|>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    with Harness(plan(EMBEDDER, tmp_path)) as harness:
        answers = [harness.submit("/v1/embeddings", {"model": "m", "input": text}).answer() for text in ("a <|added later|>", "a")]
        assert [answer.status for answer in answers] == [400, 200]
        assert isinstance(harness.engine, TransformersEmbedder)
        with pytest.raises(EngineError, match="failed on a batch of 1 inputs"):
            harness.engine.embed([PoolingInput([260])])


def test_inspection_tells_the_type(tmp_path: Path) -> None:
    def kind(name: str, config: Any, library: Any) -> str:
        return inspect(save(tmp_path / name, config, library)).model_type

    assert kind("bert", BERT, transformers.AutoModel) == "embedding"
    assert kind("qwen", QWEN, transformers.AutoModel) == "embedding"
    assert kind("reranker", BERT, transformers.AutoModelForSequenceClassification) == "rerank"
    assert kind("llm", QWEN, transformers.AutoModelForCausalLM) == "LLM"
    add_recipe(tmp_path / "llm", pooling_mode_lasttoken=True)
    assert inspect(tmp_path / "llm").model_type == "embedding"
    assert read_recipe(tmp_path / "llm").pooling == "lasttoken"
    assert len(vectors(load(tmp_path / "llm"))) == len(TEXTS)


class TestTransformersPoolingClaims(ClaimsKit):
    plugin = PLUGIN
    engine = EMBEDDER
    routes = (EmbeddingKit.route, RerankKit.route)
