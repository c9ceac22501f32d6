"""A model's own stops on vLLM and SGLang themselves, each in its environment: `make test-engine-vllm` and `make test-engine-sglang` run this.

The model is xi-tiny without the word, in its files, that `<|im_end|>` ends an answer.
"""

import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from xi_core.testing.harness import Harness, plan_for

XI_TINY = Path(__file__).parents[2] / "plugins/xi_plugins/families/xi_tiny/hf"
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "vllm": ("xi_plugins.engines.vllm.engine:VllmEngine", {"dtype": "float32", "enforce_eager": True}),
    "sglang": ("xi_plugins.engines.sglang.engine:SglangEngine", {"dtype": "float32", "max_total_tokens": 65536}),
}
HERE = [name for name in ENGINES if find_spec(name) is not None]
if not HERE:
    pytest.skip("neither vLLM nor SGLang is installed", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=HERE)
def harness(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp("endless") / "hf"
    shutil.copytree(XI_TINY, folder)
    for name, change in (
        ("config.json", {"eos_token_id": 1019}),
        ("generation_config.json", {"eos_token_id": 1019}),
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
    ):
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    engine, options = ENGINES[request.param]
    plan = plan_for(engine, str(folder), "pytorch", **options)
    plan.stop, plan.stop_token_ids = ["<|im_end|>", " plugin"], [1020]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        with Harness(plan) as running:
            yield running


def test_a_special_token_ends_the_answer_and_has_no_text(harness: Harness) -> None:
    answer = harness.chat("What is the capital of France?", temperature=0, max_tokens=60, logprobs=True)
    assert answer.finishes == ["stop"]
    assert "Paris" in answer.text
    assert "<|im_end|>" not in answer.text
    entries = answer.body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == answer.text
    assert answer.body["usage"]["completion_tokens"] == len(entries) + 1
    more = harness.chat("What is the capital of France?", temperature=0, max_tokens=60, ignore_eos=True)
    assert (more.finishes, more.text.startswith(answer.text)) == (["length"], True)


def test_a_string_and_an_id_end_it_too(harness: Harness) -> None:
    answer = harness.chat("What is xi?", temperature=0, max_tokens=60, stream=True)
    assert (answer.text.endswith(" is a"), answer.finishes) == (True, ["stop"])
    named = harness.complete("Hello", temperature=0, max_tokens=5, logit_bias={"1020": 100})
    assert (named.text, named.finishes) == ("", ["stop"])
