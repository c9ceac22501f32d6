"""LoRA adapters on the engine `transformers`: batches of several adapters, held against peft itself on the plain model."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

import safetensors.torch  # noqa: E402

import xi_plugins  # noqa: E402
from xi_core.engine.base import SamplingParams  # noqa: E402
from xi_core.errors import ArtifactError, EngineNotInstalled, InvalidRequest  # noqa: E402
from xi_core.models.adapter import CONFIG, WEIGHTS  # noqa: E402
from xi_core.testing.harness import plan_for  # noqa: E402
from xi_core.wire.plan import LoraModule  # noqa: E402
from xi_plugins.engines.transformers.engine import TransformersEngine  # noqa: E402

pytestmark = pytest.mark.engine("transformers")

XI_TINY = Path(xi_plugins.__file__).parent / "families" / "xi_tiny" / "hf"
PROMPTS = [[5, 17, 200, 44], [9, 8, 7, 6, 5, 4, 3], [300, 301]]
TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plain() -> Any:
    """In 32 bits, as the engine here: in 16 the likeliest two tokens may be equal, and processors differ in which comes first."""
    return transformers.AutoModelForCausalLM.from_pretrained(XI_TINY, dtype=torch.float32)


def save(directory: Path, seed: int, target: Any = "all-linear", spread: float = 0.05, **config: Any) -> Path:
    """An adapter of random numbers: peft's own begin as zeros, which change nothing."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(plain(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=target, **config))
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name or "modules_to_save" in name:
                torch.nn.init.normal_(weight, std=spread)
        model.save_pretrained(str(directory))
    return directory


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the names that requests call them: with a dot, which peft itself wouldn't take."""
    home = tmp_path_factory.mktemp("adapters")
    return {
        "one.v1": save(home / "one", 1),
        "two": save(home / "two", 2, target=["q_proj", "v_proj"], spread=0.2, use_rslora=True),
        "head": save(home / "head", 3, target=["down_proj"], modules_to_save=["lm_head"]),
        "words": save(home / "words", 4, target=["embed_tokens", "k_proj"], spread=0.3),
    }


def load(adapters: dict[str, Path], **options: Any) -> TransformersEngine:
    plan = plan_for(
        "xi_plugins.engines.transformers.engine:TransformersEngine", str(XI_TINY), "pytorch", threads=1, dtype="float32", **options
    )
    plan.lora_modules = [LoraModule(name=name, path=str(path)) for name, path in adapters.items()]
    engine = TransformersEngine()
    engine.load(plan, lambda stage, share: None)
    return engine


def run(engine: TransformersEngine, requests: list[tuple[list[int], str | None]]) -> list[list[int]]:
    """Greedy answers; all requests at once."""
    for id, (prompt, adapter) in enumerate(requests):
        engine.add(id, prompt, SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True, adapter=adapter))
    answers: list[list[int]] = [[] for _ in requests]
    while engine.stats().running:
        output = engine.step()
        assert not output.errors
        for token in output.tokens:
            answers[token.id].append(token.token)
    return answers


def directly(directory: Path | None, prompt: list[int]) -> list[int]:
    """The same by peft and the library alone, without any cache."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        model = plain() if directory is None else peft.PeftModel.from_pretrained(plain(), str(directory))
        ids = list(prompt)
        for _ in range(TOKENS):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_one_batch_of_the_model_and_its_adapters_answers_as_each_alone_and_as_peft(adapters: dict[str, Path]) -> None:
    engine = load(adapters, prefill_chunk=16)
    requests = [(prompt, name) for prompt in PROMPTS for name in (None, *adapters)]
    together = run(engine, requests)
    assert together == [directly(adapters.get(name or ""), prompt) for prompt, name in requests]
    assert together == [run(engine, [request])[0] for request in requests]
    for name in adapters:
        own = [answer for answer, (_, asked) in zip(together, requests, strict=True) if asked == name]
        base = [answer for answer, (_, asked) in zip(together, requests, strict=True) if asked is None]
        assert own != base, f"{name} changes nothing: the test would prove nothing"


def test_what_one_adapter_has_read_is_not_taken_for_anothers(adapters: dict[str, Path]) -> None:
    """The same long prompt by one after the other: keys and values that are kept are those of one adapter."""
    engine = load({name: adapters[name] for name in ("one.v1", "two")})
    prompt = [(23 * i + 5) % 900 for i in range(150)]
    names = [None, "one.v1", "two", "one.v1", None]
    answers = [run(engine, [(prompt, name)])[0] for name in names]
    assert answers == [directly(adapters.get(name or ""), prompt) for name in names]
    assert len({tuple(answer) for answer in answers}) == 3


def test_without_adapters_nothing_of_peft_is_there() -> None:
    engine = load({})
    assert not any("peft" in type(layer).__module__ for layer in engine._runner._model.modules())
    with pytest.raises(InvalidRequest, match="there is no LoRA module 'one'"):
        engine.add(1, [1, 2], SamplingParams(max_tokens=2, adapter="one"))


def test_an_unknown_name_is_refused(adapters: dict[str, Path]) -> None:
    engine = load({"two": adapters["two"]})
    with pytest.raises(InvalidRequest, match="there is no LoRA module 'three'") as caught:
        engine.add(1, [1, 2], SamplingParams(max_tokens=2, adapter="three"))
    assert caught.value.param == "model"
    assert engine.stats().running == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is"),
        ({"megatron_config": {"a": 1}}, "megatron_config is"),
        ({"target_modules": ["nowhere"]}, "nowhere"),
        ({"r": 3}, "size mismatch"),
        ({"target_modules": ["q_proj"]}, "weights that the model has no place for"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "lacks 8 weights"),
    ],
)
def test_adapters_that_can_not_be_served_are_named(tmp_path: Path, adapters: dict[str, Path], config: dict[str, Any], words: str) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    given = json.loads((adapters["two"] / CONFIG).read_text())
    (bad / CONFIG).write_text(json.dumps({**given, **config}))
    (bad / WEIGHTS).write_bytes((adapters["two"] / WEIGHTS).read_bytes())
    with pytest.raises(ArtifactError, match=words) as caught:
        load({"good": adapters["one.v1"], "bad": bad})
    assert "LoRA module 'bad'" in caught.value.message
    assert caught.value.param == "lora_modules"


def test_weights_of_the_model_itself_are_refused_where_they_differ(tmp_path: Path, adapters: dict[str, Path]) -> None:
    """Beside an adapter of the embeddings peft saves these too: `words` above has them."""
    weights = safetensors.torch.load_file(adapters["words"] / WEIGHTS)
    own = next(name for name in weights if "lora_" not in name)
    weights[own] = weights[own] + 1
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / CONFIG).write_bytes((adapters["words"] / CONFIG).read_bytes())
    safetensors.torch.save_file(weights, bad / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"LoRA module 'bad' .* holds a weight of the model itself, .*embed_tokens"):
        load({"bad": bad})


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, adapters: dict[str, Path]) -> None:
    weights = {name: weight * float("nan") for name, weight in safetensors.torch.load_file(adapters["two"] / WEIGHTS).items()}
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / CONFIG).write_bytes((adapters["two"] / CONFIG).read_bytes())
    safetensors.torch.save_file(weights, bad / WEIGHTS)
    with pytest.raises(ArtifactError, match=r"LoRA module 'bad' .* not finite"):
        load({"bad": bad})


def test_without_peft_the_pip_line_is_said(adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xi_plugins.engines.transformers.lora", None)
    with pytest.raises(EngineNotInstalled, match=r"LoRA modules need peft.*pip install"):
        load({"two": adapters["two"]})
