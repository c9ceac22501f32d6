"""The engine `mlx` with a model that is shared by two workers of this machine, on its ring. `make test-engine-mlx` runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="the mlx engine's library is not installed: make test-engine-mlx")

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import MODEL_REMAPPING

from xi_core.api.control import ModelStatus
from xi_core.errors import LaunchError, LaunchFailed
from xi_core.testing.cluster import LocalCluster, alive, pids, rank
from xi_core.testing.harness import plan_for
from xi_core.wire.plan import RankAddress, Rendezvous
from xi_plugins.engines.mlx import ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
WEIGHTS = XI_TINY / "model.safetensors"
PIPELINE = {"pipeline": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), env={"XI_GRACE": "5"}) as made:
        yield made
        assert not made.replicas()
        assert not made.ports_held()


def launched(cluster: LocalCluster, uid: str, model: str = "xi-tiny", **fields: Any) -> ModelStatus:
    return cluster.client.launch(model, **{"model_uid": uid, "model_engine": "mlx", "n_worker": 2, "n_gpu": None, **fields})


@pytest.fixture(scope="module", params=["tensor", "pipeline"])
def uid(request: pytest.FixtureRequest, cluster: LocalCluster) -> Iterator[str]:
    launched(cluster, request.param, options=PIPELINE if request.param == "pipeline" else {})
    yield request.param
    cluster.client.terminate(request.param)


def text(cluster: LocalCluster, uid: str, prompt: str, **fields: Any) -> str:
    answer = cluster.client.chat(uid, [{"role": "user", "content": prompt}], **fields)
    return answer.choices[0].message.content or ""


def test_the_log_of_each_rank_says_how_it_is_linked(cluster: LocalCluster, uid: str) -> None:
    for each in cluster.client.model(uid).replicas[0].ranks:
        name = f"{uid}-0.log" if each.rank == 0 else f"{uid}-0.rank{each.rank}.log"
        log = (cluster.home(each.worker) / "logs" / name).read_text()
        assert f"rank {each.rank} of 2: ring at 127.0.0.1:" in log
        assert "link loopback, interface lo" in log
        held = re.search(rf"rank {each.rank} holds ([0-9.]+) MB of the weights", log)
        assert held
        assert float(held[1]) * 1e6 < 0.7 * WEIGHTS.stat().st_size


def test_greedy_answers_are_those_of_the_whole_model(cluster: LocalCluster, uid: str, expected: dict[str, Any]) -> None:
    for fact in expected["chat"][::12]:
        assert text(cluster, uid, fact["prompt"], temperature=0) == fact["answer"]


def test_eight_at_once_streamed(cluster: LocalCluster, uid: str, expected: dict[str, Any]) -> None:
    facts = expected["chat"][3:19]
    found: dict[str, str] = {}

    def ask(part: list[dict[str, Any]]) -> None:
        for fact in part:
            messages = [{"role": "user", "content": fact["prompt"]}]
            found[fact["prompt"]] = "".join(d.text for d in cluster.client.chat(uid, messages, stream=True, temperature=0))

    threads = [threading.Thread(target=ask, args=(facts[number::8],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {fact["prompt"]: fact["answer"] for fact in facts}


def test_a_seed_repeats_and_what_has_none_is_the_same_on_all_ranks(cluster: LocalCluster, uid: str) -> None:
    def sampled(**fields: Any) -> str:
        answer: Any = cluster.client.complete(uid, "The", temperature=2, max_tokens=16, ignore_eos=True, **fields)
        return str(answer.choices[0].text)

    before = pids(cluster.client.model(uid))
    assert sampled(seed=11) == sampled(seed=11)
    assert len({sampled(seed=seed) for seed in range(4)}) > 1
    for _ in range(4):
        sampled()
    assert pids(cluster.client.model(uid)) == before, "no rank has found a difference"


def test_those_that_leave_early_leave_on_all_ranks(cluster: LocalCluster, uid: str, expected: dict[str, Any]) -> None:
    before = pids(cluster.client.model(uid))
    for _ in range(3):
        deltas = cluster.client.complete(uid, "The", stream=True, max_tokens=500, ignore_eos=True, temperature=1)
        next(iter(deltas))
        deltas.close()
    fact = expected["chat"][0]
    assert text(cluster, uid, fact["prompt"], temperature=0) == fact["answer"]
    assert pids(cluster.client.model(uid)) == before


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank_takes_the_replica_along_which_is_started_again(
    cluster: LocalCluster, uid: str, expected: dict[str, Any], number: int
) -> None:
    before = cluster.client.model(uid)
    victim = rank(before, number).pid
    assert victim
    os.kill(victim, signal.SIGKILL)
    after = cluster.wait_ready(uid, unlike=pids(before))
    assert not any(alive(pid) for pid in pids(before))
    assert after.replicas[0].restarts == before.replicas[0].restarts + 1
    fact = expected["chat"][0]
    assert text(cluster, uid, fact["prompt"], temperature=0) == fact["answer"]


def random_model(name: str, architecture: str, folder: Path, **changes: Any) -> str:
    """A random model of one architecture in MLX's form, with xi-tiny's tokenizer."""
    import importlib

    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")
    config = {
        "model_type": name, "architectures": [architecture], "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 1019, "eos_token_id": 1021, **changes,
    }  # fmt: skip
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict(config))
    weights = {key: mx.random.normal(value.shape) * 0.3 if value.ndim > 1 else value for key, value in tree_flatten(model.parameters())}
    folder.mkdir(exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(XI_TINY / file, folder / file)
    return str(folder)


MIXED = {"num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "moe_intermediate_size": 64, "norm_topk_prob": True}  # fmt: skip
DEEP = {
    "num_key_value_heads": 4, "moe_intermediate_size": 64, "n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "v_head_dim": 16, "qk_nope_head_dim": 16, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "routed_scaling_factor": 1.0, "moe_layer_freq": 1, "norm_topk_prob": True, "topk_method": "noaux_tc",
    "scoring_func": "sigmoid", "attention_bias": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "architecture", "changes", "options"),
    [
        ("llama", "LlamaForCausalLM", {}, {}),
        ("mistral", "MistralForCausalLM", {}, {}),
        ("qwen3", "Qwen3ForCausalLM", {}, {}),
        ("qwen3_moe", "Qwen3MoeForCausalLM", MIXED, {}),
        ("qwen3_moe", "Qwen3MoeForCausalLM", MIXED, PIPELINE),
        ("deepseek_v3", "DeepseekV3ForCausalLM", DEEP, {}),
        ("deepseek_v3", "DeepseekV3ForCausalLM", DEEP, PIPELINE),
    ],
)
def test_each_architecture_answers_as_when_it_is_whole(
    cluster: LocalCluster, tmp_path: Path, name: str, architecture: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    path = random_model(name, architecture, tmp_path / "model", **changes)
    prompt = [(7 * number) % 1000 for number in range(20)]
    answers = []
    for workers in (1, 2):
        launched(cluster, "one", path, n_worker=workers, options=options if workers > 1 else {})
        answers.append(cluster.client.complete("one", prompt, temperature=0, max_tokens=12, ignore_eos=True).choices[0])
        cluster.client.terminate("one")
    assert answers[0].text == answers[1].text
    assert answers[0].text


@pytest.mark.parametrize(
    ("name", "architecture", "changes", "fields", "words"),
    [
        ("gemma", "GemmaForCausalLM", {}, {}, "mlx-lm cuts .*DeepseekV3ForCausalLM.* within layers; this model is GemmaForCausalLM"),
        ("llama", "LlamaForCausalLM", {}, {"options": PIPELINE}, "mlx-lm cuts DeepseekV2ForCausalLM.* between layers; this model is Llama"),
        ("llama", "LlamaForCausalLM", {}, {"n_gpu": 2}, "n_gpu is 2, for each worker: use 1 or none"),
        ("llama", "LlamaForCausalLM", {"num_key_value_heads": 1}, {}, "num_key_value_heads of this model is 1"),
        ("qwen2", "Qwen2ForCausalLM", {"num_hidden_layers": 1}, {"options": PIPELINE}, "this model has 1 layers, fewer than the 2 workers"),
        ("qwen2", "Qwen2ForCausalLM", {}, {"options": PIPELINE, "n_worker": 1}, "pipeline cuts a model between workers, and this launch has one"),
    ],
)  # fmt: skip
def test_a_model_that_can_t_be_cut_is_refused_by_name(
    cluster: LocalCluster, tmp_path: Path, name: str, architecture: str, changes: dict[str, Any], fields: dict[str, Any], words: str
) -> None:
    path = random_model(name, architecture, tmp_path / "model", **changes)
    with pytest.raises(LaunchError, match=words):
        launched(cluster, "odd", path, **fields)
    if any(model.id == "odd" for model in cluster.client.models()):
        cluster.wait_ended("odd")
        cluster.client.terminate("odd")
    assert not cluster.replicas("odd")


def test_addresses_that_the_ring_can_t_read_are_refused_for_good() -> None:
    plan = plan_for("x:Y", "", "mlx")
    hosts = ("192.0.2.1", "2001:db8::2")
    world = tuple(RankAddress(rank=n, worker=f"w{n}", host=host, ports=(23000, 23001)) for n, host in enumerate(hosts))
    plan.rendezvous = Rendezvous(rank=0, world=world)
    with pytest.raises(LaunchFailed, match=r"IPv4 addresses only.* w1 is at 2001:db8::2; .* --host"):
        ranks.check(plan, {}, pipeline=False)
