"""The engine `transformers` with a model that is shared by two workers of this machine: tensor parallel, over gloo."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the engine transformers is not installed")

from xi_core.api.control import ModelStatus
from xi_core.errors import LaunchError
from xi_core.testing.cluster import LocalCluster, alive, pids, rank

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
UID = "tiny"
XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
WEIGHTS = XI_TINY / "model.safetensors"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("cluster"), env={"XI_GRACE": "5"}) as made:
        yield made


@pytest.fixture(scope="module")
def status(cluster: LocalCluster) -> Iterator[ModelStatus]:
    yield launched(cluster)
    cluster.client.terminate(UID)
    assert not cluster.replicas()
    assert not cluster.ports_held()


def launched(cluster: LocalCluster, model: str = "xi-tiny", **fields: Any) -> ModelStatus:
    options = {"threads": 1, **fields.pop("options", {})}
    settings = {"model_uid": UID, "model_engine": "transformers", "n_worker": 2, "n_gpu": None, **fields}
    return cluster.client.launch(model, options=options, **settings)


def text(cluster: LocalCluster, prompt: str, **fields: Any) -> str:
    answer = cluster.client.chat(UID, [{"role": "user", "content": prompt}], **fields)
    return answer.choices[0].message.content or ""


def streamed(cluster: LocalCluster, prompt: str, **fields: Any) -> str:
    return "".join(d.text for d in cluster.client.chat(UID, [{"role": "user", "content": prompt}], stream=True, **fields))


def test_every_rank_holds_its_part_and_says_how_it_is_linked(cluster: LocalCluster, status: ModelStatus) -> None:
    for each in status.replicas[0].ranks:
        name = f"{UID}-0.log" if each.rank == 0 else f"{UID}-0.rank{each.rank}.log"
        log = (cluster.home(each.worker) / "logs" / name).read_text()
        assert f"rank {each.rank} of 2: gloo at 127.0.0.1:" in log
        assert "link loopback, interface lo" in log
        held = re.search(r"this rank holds ([0-9.]+) MB of the weights", log)
        assert held
        assert float(held[1]) * 1e6 < 0.7 * 2 * WEIGHTS.stat().st_size  # float16 there, float32 in memory


def test_greedy_answers_are_those_of_the_whole_model(cluster: LocalCluster, status: ModelStatus, expected: dict[str, Any]) -> None:
    for fact in expected["chat"][::12]:
        assert text(cluster, fact["prompt"], temperature=0) == fact["answer"]


def test_eight_at_once_streamed(cluster: LocalCluster, status: ModelStatus, expected: dict[str, Any]) -> None:
    facts = expected["chat"][3:19]
    found: dict[str, str] = {}

    def ask(part: list[dict[str, Any]]) -> None:
        for fact in part:
            found[fact["prompt"]] = streamed(cluster, fact["prompt"], temperature=0)

    threads = [threading.Thread(target=ask, args=(facts[number::8],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {fact["prompt"]: fact["answer"] for fact in facts}


def test_a_seed_repeats_and_what_has_none_is_the_same_on_all_ranks(cluster: LocalCluster, status: ModelStatus) -> None:
    def sampled(**fields: Any) -> str:
        answer: Any = cluster.client.complete(UID, "The", temperature=2, max_tokens=16, ignore_eos=True, **fields)
        return str(answer.choices[0].text)

    assert sampled(seed=11) == sampled(seed=11)
    assert len({sampled(seed=seed) for seed in range(4)}) > 1
    for _ in range(4):
        sampled()
    assert pids(cluster.client.model(UID)) == pids(status), "no rank has found a difference"


def test_a_grammar_holds_on_all_ranks(cluster: LocalCluster, status: ModelStatus) -> None:
    pytest.importorskip("llguidance", reason="structured answers need llguidance")
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}}}
    assert text(cluster, "Yes or no?", temperature=1, max_tokens=16, response_format=wanted) in ('"yes"', '"no"')
    assert pids(cluster.client.model(UID)) == pids(status)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_gpu": 2}, "n_gpu is 2, for each worker: use 1 or none"),
        ({"options": {"quantize": "torchao-int8"}}, "the option quantize is for models that are not sharded"),
        ({"n_worker": 3}, "n_worker|no worker|place|3 workers"),
    ],
)
def test_what_can_t_be_shared_is_told_at_once(cluster: LocalCluster, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        launched(cluster, model_uid="other", **fields)


@pytest.mark.parametrize("number", [0, 1])
def test_a_killed_rank_takes_the_replica_along_which_is_started_again(cluster: LocalCluster, expected: dict[str, Any], number: int) -> None:
    before = launched(cluster, model_uid="killed")
    victim = rank(before, number).pid
    assert victim
    os.kill(victim, signal.SIGKILL)
    after = cluster.wait_ready("killed", unlike=pids(before))
    assert not any(alive(pid) for pid in pids(before))
    fact = expected["chat"][0]
    answer = cluster.client.chat("killed", [{"role": "user", "content": fact["prompt"]}], temperature=0)
    assert answer.choices[0].message.content == fact["answer"]
    assert after.replicas[0].restarts == 1
    cluster.client.terminate("killed")


def family(name: str, folder: Path, **changes: Any) -> Path:
    """A random model of one architecture, with xi-tiny's tokenizer."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": False,
        "bos_token_id": 1019, "eos_token_id": 1021, "pad_token_id": 1019,
    }  # fmt: skip
    library: Any = AutoModelForCausalLM
    torch.manual_seed(1)
    model = library.from_config(AutoConfig.for_model(name, **{**sizes, **changes}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(XI_TINY / file, folder / file)
    return folder


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_each_architecture_answers_as_when_it_is_whole(cluster: LocalCluster, tmp_path: Path, name: str) -> None:
    path = str(family(name, tmp_path))
    prompt = [(7 * number) % 1000 for number in range(20)]
    answers = []
    for workers in (1, 2):
        launched(cluster, path, model_uid=name, n_worker=workers)
        answers.append(cluster.client.complete(name, prompt, temperature=0, max_tokens=24, ignore_eos=True, logprobs=2).choices[0])
        cluster.client.terminate(name)
    assert answers[0].text == answers[1].text
    assert answers[0].text


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma", {}, "it shards LlamaForCausalLM, .*; this model is GemmaForCausalLM"),
        ("llama", {"num_key_value_heads": 1}, "num_key_value_heads of this model is 1, which can't be shared by 2 workers evenly"),
        ("llama", {"intermediate_size": 97}, "intermediate_size of this model is 97"),
    ],
)
def test_a_model_that_can_t_be_cut_is_refused_by_name(
    cluster: LocalCluster, tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    path = str(family(name, tmp_path, **changes))
    with pytest.raises(LaunchError, match=words):
        launched(cluster, path, model_uid="odd")
    if any(model.id == "odd" for model in cluster.client.models()):
        cluster.wait_ended("odd")
        cluster.client.terminate("odd")
    assert not cluster.replicas("odd")
