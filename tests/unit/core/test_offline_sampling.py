"""`SamplingParams` in the API's words: every field of vLLM's that is ours is said, as the API has it."""

import msgspec
import pytest

from xi_core.api.openai import ChatRequest, CompletionRequest
from xi_core.errors import InvalidRequest
from xi_core.offline import LLM, SamplingParams
from xi_core.offline.llm import _is_one, _prompt, _spec
from xi_core.offline.sampling import CHAT, COMPLETIONS
from xi_core.wire.manifest import COMMON_FIELDS, YES, no

CELLS = dict.fromkeys(COMMON_FIELDS, YES)


def test_defaults_are_vllms_and_are_all_said():
    assert SamplingParams().body(CHAT, CELLS, 512) == {
        "n": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": 16,
        "ignore_eos": False,
    }


def test_an_engine_without_a_field_is_not_told_its_neutral_value():
    cells = {**CELLS, "min_p": no("not there")}
    del cells["top_k"]
    body = SamplingParams(presence_penalty=0.5).body(CHAT, cells, 512)
    assert "min_p" not in body
    assert "top_k" not in body
    assert SamplingParams(top_k=5, min_p=0.1).body(CHAT, cells, 512).items() >= {"top_k": 5, "min_p": 0.1}.items()


def test_fields_that_the_api_has_otherwise():
    params = SamplingParams(max_tokens=None, logprobs=3, logit_bias={7: -1.0}, stop="x")
    chat, completion = params.body(CHAT, {}, 512), params.body(COMPLETIONS, {}, 512)
    assert chat == {"max_tokens": None, "logprobs": True, "top_logprobs": 3, "logit_bias": {"7": -1.0}, "stop": "x"}
    assert completion == {"max_tokens": 512, "logprobs": 3, "logit_bias": {"7": -1.0}, "stop": "x"}


@pytest.mark.parametrize(("route", "request_type", "more"), [(CHAT, ChatRequest, "messages"), (COMPLETIONS, CompletionRequest, "prompt")])
def test_the_api_takes_every_body(route, request_type, more):
    full = SamplingParams(
        n=2, temperature=0.5, top_p=0.9, top_k=-1, min_p=0.1, presence_penalty=1, frequency_penalty=1, repetition_penalty=1.1, max_tokens=3,
        stop=["a", "b"], seed=1, ignore_eos=True, logprobs=2, logit_bias={1: 2.0},
    )  # fmt: skip
    what = [{"role": "user", "content": "x"}] if more == "messages" else "x"
    for params in (full, SamplingParams()):
        body = {"model": "m", more: what, **params.body(route, CELLS, 512)}
        msgspec.json.decode(msgspec.json.encode(body), type=request_type)


def test_an_unknown_name_is_refused_by_python():
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)


# ---- what `LLM` is called with -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "one"), [("a", True), ([1, 2], True), ({"prompt": "a"}, True), (["a"], False), ([[1], [2]], False), ([], False)]
)
def test_one_prompt_or_several(prompts, one):
    assert _is_one(prompts) is one


@pytest.mark.parametrize("bad", [None, 5, [], ["a"], {}, {"prompt": None}, {"multi_modal_data": 1}])
def test_what_is_no_prompt(bad):
    with pytest.raises(InvalidRequest, match="a prompt is"):
        _prompt(bad)


def test_options_are_the_launchs_or_the_engines():
    spec = _spec("m", "e", {"model_format": "pytorch", "n_gpu": None, "context_length": 5, "replica": 3})
    assert (spec.model_format, spec.n_gpu, spec.replica) == ("pytorch", None, 1)
    assert spec.options == {"context_length": 5, "replica": 3}, "the engine says what it doesn't know"


@pytest.mark.parametrize("size", [0, -1, "two", 1.5, None])
def test_a_size_that_is_none(size):
    with pytest.raises(InvalidRequest, match="number of devices"):
        LLM("m", tensor_parallel_size=size)
