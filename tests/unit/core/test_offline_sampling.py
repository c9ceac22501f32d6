"""`SamplingParams` in the API's words: every field of vLLM's that is ours is said, as the API has it."""

import pickle

import msgspec
import pytest

from xi_core.api.control import EngineStatus
from xi_core.api.openai import ChatRequest, CompletionRequest
from xi_core.engine.info import HostInfo
from xi_core.errors import InvalidRequest, LaunchError
from xi_core.offline import LLM, SamplingParams, StructuredOutputsParams
from xi_core.offline.launching import spec_of, spread
from xi_core.offline.prompts import pairs_of, prompts_of
from xi_core.offline.sampling import CHAT, COMPLETIONS
from xi_core.plugins import PluginHub
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


@pytest.mark.parametrize("kind", [SamplingParams, StructuredOutputsParams])
def test_an_unknown_name_is_refused_by_python(kind):
    with pytest.raises(TypeError, match=rf"{kind.__name__}.*'best_of'"):
        kind(best_of=2)


# ---- structured output -------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"json": SCHEMA}, {"structured_outputs": {"json": SCHEMA}}),
        ({"json": msgspec.json.encode(SCHEMA).decode()}, {"structured_outputs": {"json": SCHEMA}}),
        ({"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ({"choice": ["a", "b"], "json_object": False}, {"structured_outputs": {"choice": ["a", "b"]}}),
        ({"grammar": 'root ::= "a"'}, {"structured_outputs": {"grammar": 'root ::= "a"'}}),
        ({"json_object": True}, {"response_format": {"type": "json_object"}}),
    ],
)
def test_structured_outputs(route, given, said):
    body = SamplingParams(structured_outputs=StructuredOutputsParams(**given)).body(route, {}, 512)
    assert body == {"max_tokens": 16, **said}


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "give exactly one, not none"), ({"regex": "a", "choice": ["b"]}, "not regex and choice"), ({"json": "{"}, "json is no JSON")],
)
def test_structured_outputs_that_are_none(given, words):
    with pytest.raises(InvalidRequest, match=words) as refused:
        SamplingParams(structured_outputs=StructuredOutputsParams(**given)).body(CHAT, {}, 512)
    assert refused.value.param.startswith("structured_outputs")


# ---- what `LLM` is called with -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        ("a", ["a"]),
        ([1, 2], [[1, 2]]),
        ({"prompt": "a"}, ["a"]),
        (["a"], ["a"]),
        ([[1], [2]], [[1], [2]]),
        ([], []),
        (iter(["a", "b"]), ["a", "b"]),
        ((text for text in ()), []),
        (range(2), [[0, 1]]),
    ],
)
def test_one_prompt_or_several(prompts, found):
    assert prompts_of(prompts) == found


def test_it_can_t_be_sent_to_another_process():
    with pytest.raises(TypeError, match="make one there"):
        pickle.dumps(object.__new__(LLM))


@pytest.mark.parametrize("bad", [None, 5.5, [], ["a"], {}, {"prompt": None}, {"multi_modal_data": 1}])
def test_what_is_no_prompt(bad):
    with pytest.raises(InvalidRequest, match="a prompt is"):
        prompts_of([bad])


def test_options_are_the_launchs_or_the_engines():
    spec = spec_of("m", "e", {"model_format": "pytorch", "n_gpu": None, "context_length": 5, "replica": 3, "options": 1})
    assert (spec.model_format, spec.n_gpu, spec.replica) == ("pytorch", None, 3)
    assert spec.options == {"context_length": 5, "options": 1}, "the engine says what it doesn't know"


@pytest.mark.parametrize("size", [0, -1, "two", 1.5, None])
def test_a_size_that_is_none(size):
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        with pytest.raises(InvalidRequest, match="number of devices") as refused:
            LLM("m", **{name: size})
        assert refused.value.param == name


@pytest.mark.parametrize(
    ("queries", "documents", "pairs"),
    [
        ("q", "d", [("q", ["d"])]),
        ("q", ["d", "e"], [("q", ["d", "e"])]),
        (["q"], ["d", "e"], [("q", ["d", "e"])]),
        (["p", "q"], ["d", "e"], [("p", ["d"]), ("q", ["e"])]),
    ],
)
def test_queries_and_their_documents(queries, documents, pairs):
    assert pairs_of(queries, documents) == pairs


def test_many_documents_of_a_query_are_asked_for_in_parts():
    documents = [str(number) for number in range(3000)]
    parts = pairs_of("q", documents)
    assert [document for _, part in parts for document in part] == documents
    assert max(len(part) for _, part in parts) <= 2048, "more than that a request may not have"
    assert len(parts) > 2, "for replicas to share"


@pytest.mark.parametrize(("queries", "documents"), [("q", []), ([], ["d"]), ([], []), (["p", "q"], ["d"]), (["p", "q"], ["d", "e", "f"])])
def test_queries_that_dont_go_with_the_documents(queries, documents):
    with pytest.raises(InvalidRequest, match="give one query, or one for each document"):
        pairs_of(queries, documents)


# ---- a model over several devices --------------------------------------------------------------------


class Private:
    """What `spread` asks of a `PrivateModel`."""

    def __init__(self, devices):
        self.hub = PluginHub.load()
        self._devices = devices

    def has_devices(self):
        return self._devices

    def host(self):
        return HostInfo(system="linux", machine="x86_64", python="3.11", cpus=2, memory=0)

    def engines(self, model):
        return [EngineStatus(name=info.name, available=True, reason="", formats=[], plugin="", model="yes") for info in self.hub.engines]


@pytest.mark.parametrize(
    ("devices", "given", "n_gpu"), [(True, {}, 8), (False, {}, "auto"), (True, {"n_gpu": 3}, 3), (True, {"n_gpu": None}, None)]
)
@pytest.mark.parametrize("engine", ["vLLM", "SGLang"])
def test_sizes_become_the_engines_options_and_its_devices(engine, devices, given, n_gpu):
    spec = spec_of("m", engine, {"distributed_executor_backend": "mp", **given})
    found = spread(spec, {"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, Private(devices))
    assert found.options == {"distributed_executor_backend": "mp", "tensor_parallel_size": 4, "pipeline_parallel_size": 2}
    assert (found.model_engine, found.n_gpu) == (engine, n_gpu)


def test_an_engine_that_can_spread_is_chosen():
    assert spread(spec_of("m", None, {}), {"tensor_parallel_size": 2}, Private(True)).model_engine in ("vLLM", "SGLang")
    assert spread(spec_of("m", None, {}), {}, Private(True)).model_engine is None


def test_an_engine_that_cant_spread_says_so():
    with pytest.raises(LaunchError, match=r"engine transformers can't spread .*pipeline_parallel_size can't be 2") as refused:
        spread(spec_of("m", "transformers", {}), {"pipeline_parallel_size": 2}, Private(True))
    assert refused.value.param == "pipeline_parallel_size"
