"""The plugin `SGLang` without SGLang: its command line, bodies and events. What its own parser says is in tests/engines/test_sglang.py."""

import argparse
import json
import sys

import pytest

from xi_core.engine.base import ApiRequest
from xi_core.engine.child_address import Address
from xi_core.engine.child_translate import to_xi
from xi_core.errors import InvalidRequest, UnknownOption
from xi_core.serving.pooling_request import EMBEDDINGS
from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.testing.harness import plan_for
from xi_core.testing.manifest_bounds import widened
from xi_core.wire.plan import LoraModule
from xi_plugins.engines.sglang.command import command_line, options_of
from xi_plugins.engines.sglang.engine import SglangEngine
from xi_plugins.engines.sglang.plugin import xi_engines
from xi_plugins.engines.sglang.pooling import SglangEmbedder
from xi_plugins.engines.sglang.start import words_for
from xi_plugins.engines.sglang.structured import with_grammar
from xi_plugins.engines.sglang.tokens import check_ids, vocabulary_size, without_special

INFO = next(iter(xi_engines()))


def plan(path="/m", devices=0, **options):
    made = plan_for(INFO.engine, str(path), "pytorch", "uid", **INFO.check_options(options))
    made.devices = [f"cuda:{number}" for number in range(devices)]
    return made


@pytest.fixture
def address(tmp_path):
    return Address(key="secret", folder=str(tmp_path), port=4711)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "config.json").write_text('{"vocab_size": 100}')
    return tmp_path


def request(route=CHAT, adapter=None, **body):
    return ApiRequest(id=1, route=route, body=body, adapter=adapter)


# ---- the command line -------------------------------------------------------------------------------


def test_command_line():
    argv = command_line(plan(enable_metrics=False, mem_fraction_static=0.8), port=4711)
    assert argv[:2] == [sys.executable, "-P"]
    assert argv[2].endswith("start.py")
    wanted = {"--model-path=/m", "--served-model-name=uid", "--host=127.0.0.1", "--port=4711", "--mem-fraction-static=0.8"}
    assert wanted | {"--no-enable-metrics", "--grammar-backend=llguidance", "--max-running-requests=32"} <= set(argv)


def test_key_and_log_probabilities_go_by_environment(model, address):
    command = SglangEngine().command(plan(model), address)
    assert "secret" not in " ".join(command.argv)
    assert "secret" in command.env.values()
    assert command.env["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "1"


def test_cpu_is_said_where_there_are_no_devices(model, address):
    cpu, gpu = (SglangEngine().command(plan(model, devices=devices), address) for devices in (0, 1))
    assert {"--device=cpu", "--disable-overlap-schedule", "--disable-custom-all-reduce"} <= set(cpu.argv)
    assert cpu.defaults["SGLANG_USE_CPU_ENGINE"] == "1"
    assert not any(word.startswith(("--device", "--disable")) for word in gpu.argv)
    assert "SGLANG_USE_CPU_ENGINE" not in gpu.defaults


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, {"tensor_parallel_size": 4}),
        ({"tp_size": 4}, {"tensor_parallel_size": 4}),
        ({"pp": 2}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}),
        ({"dp-size": 2}, {"tensor_parallel_size": 2, "data_parallel_size": 2}),
        ({"dp": 4, "enable_dp_attention": True}, {"tensor_parallel_size": 4, "data_parallel_size": 4}),
    ],
)
def test_devices_are_spread_over(options, sizes):
    found = options_of(plan(devices=4, **options), port=1)
    assert {name: found[name] for name in sizes} == sizes


@pytest.mark.parametrize("options", [{"tp": 2}, {"tp": 2, "pp": 4}, {"pp": 3}, {"tp": "two"}, {"tp": 0}])
def test_sizes_that_do_not_come_to_the_devices_are_refused(options):
    with pytest.raises(UnknownOption, match="_parallel_size"):
        options_of(plan(devices=4, **options), port=1)


def test_lora_modules():
    given = plan()
    given.lora_modules = [LoraModule(name=name, path=f"/adapters/{name}") for name in ("a", "b")]
    found = options_of(given, port=1)
    assert found["enable_lora"] is True
    assert found["lora_paths"] == ["a=/adapters/a", "b=/adapters/b"]
    assert found["max_loras_per_batch"] == 3
    given.options = {"max_loras_per_batch": 2}
    assert options_of(given, port=1)["max_loras_per_batch"] == 2
    assert "enable_lora" not in options_of(plan(), port=1)


@pytest.mark.parametrize("name", ["lora-paths", "enable_lora", "is_embedding", "api_key", "model-path"])
def test_what_xi_sets_itself_is_refused(name):
    with pytest.raises(UnknownOption, match="can't be given") as caught:
        INFO.check_options({name: "x"})
    assert caught.value.param == name.replace("-", "_")


def test_negations_of_flags_that_are_off_anyway():
    parser = argparse.ArgumentParser()
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--either", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--size", type=int)
    given = ["--no-flag", "--no-either", "--no-size", "--no-such", "--size=1", "--flag"]
    assert words_for(parser, given) == ["--no-either", "--no-size", "--no-such", "--size=1", "--flag"]


# ---- the manifest -----------------------------------------------------------------------------------


def cells(path, **options):
    return SglangEngine().loaded(plan(path, **options), {"max_model_len": 9}).manifest.endpoints[CHAT]


def test_what_needs_an_option_of_the_launch(model):
    without, with_all = cells(model, grammar_backend="xgrammar"), cells(model, tool_call_parser="auto", enable_deterministic_inference=True)
    for name in ("seed", "tools", "tool_choice", "response_format", "structured_outputs"):
        assert without[name].state == "no", name
        assert "launch it with --" in without[name].reason
        assert with_all[name].state != "no", name


def test_embeddings(model, address):
    engine = SglangEmbedder()
    assert INFO.engine_for("embedding") == "xi_plugins.engines.sglang.pooling:SglangEmbedder"
    assert "--is-embedding" in engine.command(plan(model), address).argv
    loaded = engine.loaded(plan(model), {"max_model_len": 9})
    assert set(loaded.manifest.endpoints) == {EMBEDDINGS}
    assert widened(loaded.manifest, INFO.manifest) == []
    assert engine.body(request(EMBEDDINGS, input=["x"])) == {"input": ["x"]}


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"tool_call_parser": "mistral"}, "qwen25"), ({"tool_call_parser": "qwen25", "grammar_backend": "xgrammar"}, "--grammar-backend")],
)
def test_calls_that_can_not_be_forced(model, options, reason):
    cell = cells(model, **options)["tool_choice"]
    assert cell.values == ("none", "auto")
    assert reason in cell.reason
    assert not cells(model, tool_call_parser="qwen25")["tool_choice"].values


# ---- bodies -----------------------------------------------------------------------------------------


def test_adapter_and_top_k():
    assert SglangEngine().body(request(adapter="pirate", top_k=0)) == {"lora_path": "pirate", "top_k": -1}
    assert SglangEngine().body(request(top_k=7)) == {"top_k": 7}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
        {"structured_outputs": {"json": {"type": "integer"}}},
        {"structured_outputs": {"regex": r"\d+"}},
        {"structured_outputs": {"choice": ["a", 'b "c"\n']}},
        {"structured_outputs": {"grammar": 'root ::= "a" | "b"'}},
    ],
)
def test_grammars_go_in_the_dialect_of_llguidance(fields):
    body = with_grammar({"prompt": "x", **fields}, None, {})
    assert set(body) == {"prompt", "ebnf"}
    assert body["ebnf"].startswith("%llguidance {}\nstart: ")


@pytest.mark.parametrize(("kind", "value"), [("regex", "(a"), ("grammar", "root ::= nope"), ("json", {"type": "object", "not": {}})])
def test_bad_grammar_is_named(kind, value):
    with pytest.raises(InvalidRequest) as caught:
        with_grammar({"structured_outputs": {kind: value}}, None, {})
    assert caught.value.param == f"structured_outputs.{kind}"


def test_free_text_stays_as_it_is():
    assert with_grammar({"prompt": "x"}, None, {}) == {"prompt": "x"}


def test_asked_again_with_what_fits():
    asked = request(COMPLETIONS, prompt="x", max_tokens=90, top_k=0)
    message = (
        b"Requested token count exceeds the model's maximum context length of 64 tokens. "
        b"You requested a total of 130 tokens: 40 tokens from the input"
    )
    assert SglangEngine().second_body(asked, message) == {"prompt": "x", "max_tokens": 24, "top_k": -1}
    assert SglangEngine().second_body(asked, message.replace(b"40 tokens", b"64 tokens")) is None
    assert SglangEngine().second_body(asked, b"no") is None


def test_ids_that_no_token_has(model, address):
    generating, embedding = SglangEngine(), SglangEmbedder()
    for engine in (generating, embedding):
        engine.command(plan(model), address)
    assert generating.body(request(COMPLETIONS, prompt=[0, 99]))["prompt"] == [0, 99]
    with pytest.raises(InvalidRequest, match="the model has 100 tokens") as caught:
        generating.body(request(COMPLETIONS, prompt=[99, 100]))
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest, match="100 is no token's id") as caught:
        embedding.body(request(EMBEDDINGS, input=[[1], [1, 100]]))
    assert caught.value.param == "input[1]"


def test_vocabulary_size(tmp_path):
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 7}}')
    assert vocabulary_size(str(tmp_path)) == 7
    (tmp_path / "config.json").write_text("{}")
    assert vocabulary_size(str(tmp_path)) is None
    check_ids([10**9], None, "prompt")


# ---- events -----------------------------------------------------------------------------------------


def test_log_probabilities_of_special_tokens_are_left_out():
    entries = [{"token": token, "logprob": -1.0, "top_logprobs": []} for token in ("a", "<end>")]
    event = {"choices": [{"index": 0, "delta": {}, "logprobs": {"content": entries}, "finish_reason": None}]}
    found = json.loads(without_special(to_xi(json.dumps(event).encode()), frozenset({"<end>"})))
    assert [entry["token"] for entry in found["choices"][0]["logprobs"]["content"]] == ["a"]


@pytest.mark.parametrize("plain", [True, False], ids=["as UTF-8", "as an escape"])
@pytest.mark.parametrize("place", ["content", "reasoning_content", "text"])
def test_character_that_is_cut_is_left_out(place, plain):
    """What SGLang can't decode within the text stays, as in other engines."""
    engine, end = SglangEngine(), "length"
    assert written(engine, {place: "a\ufffdb\ufffd"}, {"finish": end}, plain=plain) == [{place: "a\ufffdb"}, {}]
    assert written(engine, {place: "a\ufffd"}, {place: "b\ufffd", "finish": end}, plain=plain) == [{place: "a"}, {place: "\ufffdb"}]
    assert written(engine, {place: "a\ufffd"}, {place: "\ufffd", "finish": end}, plain=plain) == [{place: "a"}, {place: ""}]
    assert engine._held == {}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([{"content": "a\ufffd"}, {"content": ""}, {"content": "b"}], [{"content": "a"}, {"content": ""}, {"content": "\ufffdb"}]),
        ([{"text": "\ufffd\ufffd"}, {"text": "\ufffd"}, {"text": "b"}], [{"text": ""}, {"text": ""}, {"text": "\ufffd\ufffd\ufffdb"}]),
        (
            [{"reasoning_content": "a\ufffd"}, {"content": "b"}],
            [{"reasoning_content": "a"}, {"reasoning_content": "\ufffd", "content": "b"}],
        ),
        ([{"content": "a\ufffd"}, {"tool_calls": [{}]}], [{"content": "a"}, {"content": "\ufffd", "tool_calls": [{}]}]),
        ([{"reasoning_content": "a\ufffd", "content": "b"}], [{"reasoning_content": "a\ufffd", "content": "b"}]),
    ],
)
def test_mark_that_the_model_wrote_comes_before_what_follows(events, expected):
    assert written(SglangEngine(), *events) == expected


def test_marks_of_requests_are_kept_apart_and_end_with_them():
    engine = SglangEngine()
    written(engine, {"text": "a\ufffd"}, id=1)
    assert written(engine, {"text": "b"}, id=2) == [{"text": "b"}]
    engine.ended(ApiRequest(id=1, route=COMPLETIONS, body={}))
    assert written(engine, {"text": "c"}, id=1) == [{"text": "c"}]


def written(engine, *events, id=1, plain=True):
    """What is in the events of one request, as the engine gives them on."""
    found = []
    for event in events:
        part = {name: value for name, value in event.items() if name != "finish"}
        choice = {"index": 0, **(part if "text" in part else {"delta": part}), "finish_reason": event.get("finish")}
        data = json.dumps({"choices": [choice]}, ensure_ascii=not plain, separators=(",", ":")).encode()
        (answer,) = json.loads(engine.event(ApiRequest(id=id, route=CHAT, body={}), data))["choices"]
        found.append(answer["delta"] if "delta" in answer else {"text": answer["text"]})
    return found


def test_event_without_log_probabilities_is_passed_on_as_it_came():
    data = b'{"choices":[{"delta":{"content":"<end>"},"logprobs":null}]}'
    assert SglangEngine().event(request(), data) is data
