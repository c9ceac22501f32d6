"""The MLX engine on xi-tiny and on copies of it that were changed. `make test-engine-mlx` runs it where mlx is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="the mlx engine's library is not installed: make test-engine-mlx")

import mlx.core as mx
import numpy as np
from mlx_lm.convert import convert

from xi_core.engine.base import SamplingParams
from xi_core.errors import ArtifactError, UnknownOption
from xi_core.testing.batch_kit import BatchKit
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.replica_process import replica
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.mlx.engine import MlxEngine
from xi_plugins.engines.mlx.sampling import Row, Sampler, token_logprobs

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINE = "xi_plugins.engines.mlx.engine:MlxEngine"
QUESTION = "What is the capital of France?"


def plan(path: Path = XI_TINY, **options: Any) -> LaunchPlan:
    return plan_for(ENGINE, str(path), "mlx", **options)


def copied(directory: Path, remove: tuple[str, ...] = (), **changes: Any) -> Path:
    shutil.copytree(XI_TINY, directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in (config | changes).items() if name not in remove}
    (directory / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    return directory


def load(path: Path, **options: Any) -> MlxEngine:
    engine = MlxEngine()
    engine.load(plan(path, **options), lambda stage, share: None)
    return engine


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness(plan()) as harness:
        yield harness


# ---- loading ------------------------------------------------------------------------------------


def test_every_expected_answer_alone(harness: Harness, expected: dict[str, Any]) -> None:
    for fact in expected["chat"]:
        assert harness.chat(fact["prompt"], temperature=0).text == fact["answer"]


def test_rope_parameters_are_enough(tmp_path: Path, expected: dict[str, Any]) -> None:
    """mlx-lm alone would take another base here and answer with nonsense."""
    with Harness(plan(copied(tmp_path, remove=("rope_theta",)))) as harness:
        for fact in expected["chat"][:8]:
            assert harness.chat(fact["prompt"], temperature=0).text == fact["answer"]


def test_a_base_that_nobody_named_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="neither rope_theta nor rope_parameters"):
        load(copied(tmp_path, remove=("rope_theta", "rope_parameters")))


def test_a_quantized_model_in_mlx_form(tmp_path: Path, expected: dict[str, Any]) -> None:
    convert(str(XI_TINY), str(tmp_path / "q8"), quantize=True, q_bits=8, q_group_size=64)
    with Harness(plan(tmp_path / "q8")) as harness:
        right = sum(harness.chat(fact["prompt"], temperature=0).text == fact["answer"] for fact in expected["chat"][:20])
    assert right >= 15, "8 bits are nearly as good as 16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model_type": "nonsuch"}, "nonsuch"), ({"hidden_size": 256}, "can't load"), ({"model_file": "evil.py"}, "custom module")],
)
def test_what_the_library_cannot_load_is_said(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        load(copied(tmp_path, **changes))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such directory"):
        load(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        load(tmp_path)
    (copied(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load(tmp_path)


def test_options_count() -> None:
    with Harness(plan(batch_size=2, context_length=64, prefill_chunk=16, prefill_batch=8)) as harness:
        assert (harness.model.slots, harness.model.context_length) == (2, 64)
        calls = [harness.start_chat(QUESTION, temperature=0) for _ in range(5)]
        assert len({call.answer().text for call in calls}) == 1
        assert harness.chat("long " * 64).status == 400
    with pytest.raises(UnknownOption, match="1024"):
        load(XI_TINY, context_length=4096)
    with pytest.raises(UnknownOption, match="engine mlx"):
        load(XI_TINY, nonsense=1)


def test_a_launch_with_devices_needs_a_device() -> None:
    given = plan()
    given.devices = ["cuda:0"]
    if mx.default_device() != mx.Device(mx.cpu):
        pytest.skip("mlx has a device here")
    with pytest.raises(UnknownOption, match="CPU only"):
        MlxEngine().load(given, lambda stage, share: None)


# ---- sequences ----------------------------------------------------------------------------------


class TestBatch(BatchKit):
    plan = plan(batch_size=3, prefill_chunk=16)


def test_a_long_prompt_beside_short_ones(harness: Harness, expected: dict[str, Any]) -> None:
    """Rows of very different lengths, which come and go, do not disturb each other."""
    facts = expected["chat"][:24]
    long = "Tell me a story. " * 100
    alone = harness.chat(long, temperature=0, max_tokens=20, ignore_eos=True).text
    calls = []
    for index, fact in enumerate(facts):
        calls.append(harness.start_chat(fact["prompt"], temperature=0))
        if index % 8 == 0:
            calls.append(harness.start_chat(long, temperature=0, max_tokens=20, ignore_eos=True))
    texts = [call.answer().text for call in calls]
    assert texts.count(alone) == 3
    assert [text for text in texts if text != alone] == [fact["answer"] for fact in facts]


def test_numbers_that_are_not_finite_end_only_their_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(XI_TINY)
    engine.add(1, [300, 301], SamplingParams(max_tokens=5, ignore_eos=True))
    engine.add(2, [300, 301], SamplingParams(max_tokens=5, ignore_eos=True))
    real, calls = Row.__call__, 0

    def broken(row: Row, tokens: mx.array, logits: mx.array) -> mx.array:
        nonlocal calls
        calls += 1
        return real(row, tokens, logits * float("nan") if calls == 3 else logits)

    monkeypatch.setattr(Row, "__call__", broken)
    outputs = [engine.step() for _ in range(12)]
    assert [error.id for output in outputs for error in output.errors] == [1]
    assert len([token for output in outputs for token in output.tokens if token.id == 2]) == 5
    assert engine.stats().running == 0


# ---- sampling -----------------------------------------------------------------------------------

LOGITS = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], dtype=np.float32))


def shares(prompt: list[int], answer: list[int], **fields: Any) -> list[float]:
    """How often each of five tokens comes out, of many draws."""
    sampler, count = Sampler(), 4000
    tokens = mx.array(prompt + answer)
    rows = [Row(sampler, SamplingParams(max_tokens=1, seed=seed, **fields), len(prompt)) for seed in range(count)]
    logits = mx.concatenate([row(tokens, mx.array(LOGITS)[None]) for row in rows], axis=0)
    found = np.bincount(np.array(sampler(logits - mx.logsumexp(logits, axis=-1, keepdims=True))), minlength=5)
    assert not sampler.announced
    return [round(float(share), 6) for share in found / count]


def of(weights: list[float]) -> Any:
    return pytest.approx([weight / sum(weights) for weight in weights], abs=0.03)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, [0.4, 0.3, 0.15, 0.1, 0.05]),
        ({"temperature": 0.5}, [0.16, 0.09, 0.0225, 0.01, 0.0025]),
        ({"temperature": 0}, [1, 0, 0, 0, 0]),
        ({"top_k": 2}, [0.4, 0.3, 0, 0, 0]),
        ({"top_k": 50}, [0.4, 0.3, 0.15, 0.1, 0.05]),
        ({"top_p": 0.6}, [0.4, 0.3, 0, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.8}, [0.4, 0.3, 0, 0, 0]),
        ({"min_p": 0.3}, [0.4, 0.3, 0.15, 0, 0]),
        ({"min_p": 0.3, "top_k": 2}, [0.4, 0.3, 0, 0, 0]),
        ({"logit_bias": {4: float(np.log(8))}}, [0.4, 0.3, 0.15, 0.1, 0.4]),
        ({"presence_penalty": float(np.log(2))}, [0.4, 0.15, 0.15, 0.1, 0.05]),
        ({"frequency_penalty": float(np.log(2))}, [0.4, 0.075, 0.15, 0.1, 0.05]),
        ({"repetition_penalty": 2.0}, [0.16, 0.09, 0.15, 0.1, 0.05]),
    ],
)
def test_shares_are_what_the_fields_say(fields: dict[str, Any], weights: list[float]) -> None:
    assert shares(prompt=[0, 0], answer=[1, 1], **fields) == of(weights)


def test_rows_of_a_batch_keep_their_own_fields() -> None:
    sampler = Sampler()
    fields: list[dict[str, Any]] = [{"temperature": 0}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}, {"logit_bias": {4: 100.0}}]
    rows = [Row(sampler, SamplingParams(max_tokens=1, **each), 1) for each in fields]
    logits = mx.concatenate([row(mx.array([0]), mx.array(LOGITS)[None]) for row in rows], axis=0)
    assert sampler(logits).tolist() == [0, 0, 0, 0, 4]


def test_alternatives_come_likeliest_first() -> None:
    values = np.array([-1.0, -3.0, -1.0, -2.0], dtype=np.float32)
    assert token_logprobs(values, 3, 3).top == [(0, -1.0), (2, -1.0), (3, -2.0)]
    assert token_logprobs(values, 3, 1).top == [(0, -1.0)]
    assert token_logprobs(values, 3, 9).top == [(0, -1.0), (2, -1.0), (3, -2.0), (1, -3.0)]
    assert (token_logprobs(values, 1, 0).logprob, token_logprobs(values, 1, 0).top) == (-3.0, [])


def test_logprobs_are_the_models_own_whatever_shapes_the_draw(harness: Harness) -> None:
    plain = harness.chat(QUESTION, temperature=0, logprobs=True, top_logprobs=3, max_tokens=1).logprobs[0]
    fields: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.5, "presence_penalty": 1, "logit_bias": {"65": 3}}
    shaped = harness.chat(QUESTION, logprobs=True, top_logprobs=3, max_tokens=1, **fields).logprobs[0]
    assert shaped["top_logprobs"] == plain["top_logprobs"]


# ---- the replica's process ----------------------------------------------------------------------

RESTLESS = """
import threading
import mlx.core as mx
from xi_plugins.engines.mlx.engine import MlxEngine

def work():
    while True:
        mx.eval(mx.ones((300, 300)) @ mx.ones((300, 300)))

class Restless(MlxEngine):
    def load(self, plan, progress):
        threading.Thread(target=work, daemon=True).start()
        return super().load(plan, progress)
"""


@pytest.mark.parametrize("engine", [ENGINE, "restless:Restless"])
def test_a_stop_is_a_clean_exit_whatever_still_computes(tmp_path: Path, engine: str) -> None:
    (tmp_path / "restless.py").write_text(RESTLESS)
    launch = plan_for(engine, str(XI_TINY), "pytorch")
    launch.endpoint = f"ipc://{tmp_path}/r.sock"
    with replica(launch, tmp_path) as process:
        process.until("ready")
        process.child.terminate()
        assert process.child.wait(30) == 0
