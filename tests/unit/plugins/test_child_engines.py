"""The plugins `vLLM` and `SGLang` without their libraries: what they tell, refuse, run and read."""

import json
import re
from pathlib import Path

import msgspec
import pytest

from xi_core.engine.base import ApiRequest
from xi_core.engine.child_address import Address
from xi_core.engine.info import HostInfo, ShardRequest
from xi_core.errors import ArtifactError, EngineError, EngineNotInstalled, UnknownOption
from xi_core.importing import import_path
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK
from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.testing.harness import plan_for
from xi_core.testing.manifest_bounds import widened
from xi_core.wire.plan import LoraModule, RankAddress, Rendezvous
from xi_plugins.engines.sglang import plugin as sglang
from xi_plugins.engines.vllm import plugin as vllm

CLOSED = {"VLLM_SERVER_DEV_MODE": "0", "VLLM_ALLOW_INSECURE_SERIALIZATION": "0"}
"""Doors of vLLM that no launch opens by --env."""

PLUGINS = pytest.mark.parametrize("plugin", [vllm, sglang], ids=["vllm", "sglang"])
HOST = HostInfo(system="linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)


def info(plugin):
    return next(iter(plugin.xi_engines()))


@pytest.fixture
def model(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


@pytest.fixture
def address(tmp_path):
    def make(plugin):
        folder = tmp_path / "child"
        folder.mkdir(exist_ok=True)
        if import_path(info(plugin).engine).unix_socket:
            return Address(key="secret", folder=str(folder), socket="/run/s.sock")
        return Address(key="secret", folder=str(folder), port=4711)

    return make


def plan(plugin, path, devices=0, **options):
    made = plan_for(info(plugin).engine, str(path), "pytorch", "uid", **info(plugin).check_options(options))
    made.devices = [f"cuda:{number}" for number in range(devices)]
    return made


def engine(plugin):
    return import_path(info(plugin).engine)()


# ---- match --------------------------------------------------------------------------------


@PLUGINS
def test_match(plugin):
    def spec(**fields):
        return ModelSpec(**{"name": "m", "format": "pytorch", "source": SourceRef(source="local", id="/m"), **fields})

    assert all(plugin.match(spec(format=one), HOST).ok for one in ("pytorch", "gptq", "awq", "fp8"))
    assert "not format ggufv2" in plugin.match(spec(format="ggufv2"), HOST).reason
    assert plugin.match(spec(model_type="embedding"), HOST).ok
    assert "model type image is none of" in plugin.match(spec(model_type="image"), HOST).reason


# ---- the command ------------------------------------------------------------------------------------


@PLUGINS
def test_what_xi_sets_itself_is_refused(plugin):
    for name in ("port", "api-key", "served_model_name", *(("lora_modules", "runner") if plugin is vllm else ())):
        with pytest.raises(UnknownOption, match="can't be given"):
            info(plugin).check_options({name: "x"})


@PLUGINS
def test_the_key_is_in_no_command_line(plugin, model, address):
    command = engine(plugin).command(plan(plugin, model), address(plugin))
    assert "secret" not in " ".join(command.argv)


def test_command_of_vllm(model, address):
    given = plan(vllm, model, gpu_memory_utilization=0.9, enforce_eager=True, enable_prefix_caching=False, **{"max-model-len": 64})
    command = engine(vllm).command(given, address(vllm))
    assert command.argv[1:4] == ["-P", "-m", "vllm.entrypoints.openai.api_server"]
    wanted = {f"--model={model}", "--served-model-name=uid", "--uds=/run/s.sock", "--gpu-memory-utilization=0.9", "--enforce-eager"}
    assert wanted | {"--no-enable-prefix-caching", "--max-model-len=64", "--generation-config=vllm", "--max-num-seqs=32"} <= set(
        command.argv
    )
    assert command.env == {"VLLM_API_KEY": "secret", **CLOSED}
    assert int(command.defaults["VLLM_CPU_KVCACHE_SPACE"]) >= 1
    assert command.defaults["HF_HUB_OFFLINE"] == "1"
    short, long = (msgspec.structs.replace(address(vllm), folder="/" + "x" * length) for length in (20, 80))
    assert engine(vllm).command(given, short).defaults["VLLM_RPC_BASE_PATH"] == short.folder, "its sockets go with the launch"
    assert "VLLM_RPC_BASE_PATH" not in engine(vllm).command(given, long).defaults


@PLUGINS
def test_devices_are_spread_over(plugin, model, address):
    assert "--tensor-parallel-size=4" in engine(plugin).command(plan(plugin, model, 4), address(plugin)).argv
    both = engine(plugin).command(plan(plugin, model, 4, pp=2), address(plugin)).argv
    assert {"--tensor-parallel-size=2", "--pipeline-parallel-size=2"} <= set(both)
    with pytest.raises(UnknownOption, match="--n-gpu 2"):
        engine(plugin).command(plan(plugin, model, 4, tp=2), address(plugin))


def test_several_gpus_by_ray_are_passed_on(model, address):
    given = plan(vllm, model, 2, **{"distributed-executor-backend": "ray"})
    command = engine(vllm).command(given, address(vllm))
    assert {"--distributed-executor-backend=ray", "--tensor-parallel-size=2"} <= set(command.argv)
    assert "RAY_ADDRESS" not in {**command.env, **command.defaults}  # what the worker or --env says reaches the child as it is


def test_sizes_are_as_given_on_a_cpu(model, address):
    argv = engine(vllm).command(plan(vllm, model, tp=2, pipeline_parallel_size="2"), address(vllm)).argv
    assert {"--tensor-parallel-size=2", "--pipeline-parallel-size=2"} <= set(argv)
    with pytest.raises(UnknownOption, match="tensor_parallel_size"):
        engine(vllm).command(plan(vllm, model, tp=0), address(vllm))


@pytest.fixture
def adapters(tmp_path):
    def make(**ranks):
        modules = []
        for name, rank in ranks.items():
            folder = tmp_path / name
            folder.mkdir()
            (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
            head = json.dumps({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode()
            (folder / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
            modules.append(LoraModule(name=name, path=str(folder)))
        return modules

    return make


def test_lora_modules_of_vllm(model, address, adapters):
    given = plan(vllm, model)
    given.lora_modules = adapters(pirate=4, poet=12)
    argv = engine(vllm).command(given, address(vllm)).argv
    assert {"--enable-lora", "--max-lora-rank=16", "--max-loras=3", "--max-cpu-loras=3"} <= set(argv)
    start = argv.index("--lora-modules") + 1
    assert [json.loads(word) for word in argv[start : start + 2]] == [
        {"name": module.name, "path": module.path} for module in given.lora_modules
    ]
    given.options = {"max_loras": 2}
    with pytest.raises(UnknownOption, match="above the number of LoRA modules, 2"):
        engine(vllm).command(given, address(vllm))
    given.devices = ["cuda:0"]
    assert {"--max-loras=2", "--max-cpu-loras=2"} <= set(engine(vllm).command(given, address(vllm)).argv)
    given.options = {}
    assert "--max-loras=2" in engine(vllm).command(given, address(vllm)).argv
    assert "--enable-lora" not in engine(vllm).command(plan(vllm, model), address(vllm)).argv


def test_lora_module_that_is_not_there(model, address, tmp_path):
    given = plan(vllm, model)
    given.lora_modules = [LoraModule(name="pirate", path=str(tmp_path / "nowhere"))]
    with pytest.raises(ArtifactError, match=r"'pirate'.*nowhere"):
        engine(vllm).command(given, address(vllm))


@pytest.mark.parametrize(("kind", "route"), [("embedding", EMBEDDINGS), ("rerank", RERANK)])
def test_pooling_by_vllm(model, address, kind, route):
    made = import_path(info(vllm).engine_for(kind))()
    assert "--runner=pooling" in made.command(plan(vllm, model), address(vllm)).argv
    loaded = made.loaded(plan(vllm, model), {"max_model_len": 9})
    assert set(loaded.manifest.endpoints) == {route}
    assert widened(loaded.manifest, info(vllm).manifest) == []
    body = made.body(ApiRequest(id=1, route=route, body={"input": ["x"]}))
    assert body == ({"input": ["x"], "use_activation": True} if kind == "embedding" else {"input": ["x"]})


@PLUGINS
def test_template_of_the_family_goes_by_a_file(plugin, model, address):
    given = plan(plugin, model)
    given.chat_template = "{{ other }}"
    word = next(word for word in engine(plugin).command(given, address(plugin)).argv if word.startswith("--chat-template="))
    assert Path(word.partition("=")[2]).read_text() == "{{ other }}"


# ---- over several workers ---------------------------------------------------------------------------


def shard(plugin, n_worker, n_gpu, **options):
    model = ModelSpec(name="m", format="pytorch", source=SourceRef(source="local", id="/m"))
    request = ShardRequest(model=model, options=info(plugin).check_options(options), n_worker=n_worker, n_gpu=n_gpu)
    return info(plugin).shard(request)


def one_of_two(plugin, path, rank, devices=0, host="10.0.0.1", interface="eth1", **options):
    made = plan(plugin, path, devices, **options)
    world = tuple(
        RankAddress(
            rank=number,
            worker=f"w{number}",
            host=host if number == 0 else "10.0.0.2",
            ports=tuple(range(20000 + 8 * number, 20008 + 8 * number)),
            devices=tuple(made.devices),
            interface=interface,
        )
        for number in (0, 1)
    )
    made.rendezvous = Rendezvous(rank=rank, world=world, link="ethernet")
    return made


@PLUGINS
@pytest.mark.parametrize(
    ("n_worker", "n_gpu", "options"),
    [
        (2, 0, {}),
        (2, 4, {}),
        (2, 0, {"tp": 2}),
        (2, 0, {"pp": 2}),
        (2, 2, {"tp": 2, "pp": "2"}),
        (2, 2, {"pp": 4}),
        (4, 1, {"dp": 1, "pp": 2}),
    ],
)
def test_shares_that_come_to_the_devices(plugin, n_worker, n_gpu, options):
    found = shard(plugin, n_worker, n_gpu, **options)
    assert found.ok, found.reason


@PLUGINS
@pytest.mark.parametrize(
    ("n_gpu", "options", "words"),
    [
        (0, {"tp": 4}, ["tensor_parallel_size 4 × pipeline_parallel_size 1 is 4", "n_worker 2 × a CPU each is 2", "--n-worker 4"]),
        (1, {"tp": 2, "pp": 2}, ["2 × pipeline_parallel_size 2 is 4", "n_worker 2 × n_gpu 1 is 2", "--n-gpu 2"]),
        (4, {"tp": 2}, ["is 2, and n_worker 2 × n_gpu 4 is 8", "over all 8", "--n-gpu 1"]),
        (1, {"pp": 3}, ["tensor_parallel_size 1 × pipeline_parallel_size 3 is 3", "--n-worker 3"]),
        (1, {"tp": 1}, ["is 1, and", "over all 2"]),
        (1, {"tp": "two"}, ["'tensor_parallel_size'", "'two'", "whole number"]),
        (1, {"dp": 2}, ["data_parallel_size is 2", "--replica"]),
    ],
)
def test_shares_that_do_not_are_refused_with_the_numbers(plugin, n_gpu, options, words):
    found = shard(plugin, 2, n_gpu, **options)
    assert not found.ok
    for word in words:
        assert word in found.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distributed_executor_backend": "ray"}, "distributed_executor_backend is ray"),
        ({"data_parallel_hybrid_lb": True}, "data_parallel_hybrid_lb is True"),
        ({"data_parallel_rank": 0}, "data_parallel_rank is 0"),
        ({"prefill_context_parallel_size": 2}, "only tensor and pipeline"),
        ({"pp": 2, "enforce_eager": True}, "enforce_eager"),
    ],
)
def test_what_vllm_has_not_over_workers(options, words):
    assert words in shard(vllm, 2, 0, **options).reason


def test_stages_that_sglang_can_not_lay_out():
    assert "a multiple of the other" in shard(sglang, 4, 3, pp=6).reason
    assert shard(sglang, 3, 2, pp=6).ok
    assert shard(sglang, 2, 2, tp=4, dp=2, enable_dp_attention=True).ok


@PLUGINS
@pytest.mark.parametrize("name", ["nnodes", "node-rank"])
def test_where_the_ranks_meet_is_not_for_the_user(plugin, name):
    with pytest.raises(UnknownOption, match=r"--n-worker"):
        info(plugin).check_options({name: 1})


def test_ranks_of_vllm(model, address):
    head = engine(vllm).command(one_of_two(vllm, model, 0), address(vllm))
    other = engine(vllm).command(one_of_two(vllm, model, 1), address(vllm))
    common = {"--nnodes=2", "--master-addr=10.0.0.1", "--master-port=20000", "--tensor-parallel-size=2", "--enforce-eager"}
    assert common | {"--node-rank=0", "--uds=/run/s.sock", f"--model={model}"} <= set(head.argv)
    assert common | {"--node-rank=1", "--headless", "--served-model-name=uid"} <= set(other.argv)
    assert other.argv[1] == "-P"
    assert Path(other.argv[2]).name == "headless.py"
    assert other.argv[3] == str(model)
    assert "--headless" not in head.argv
    assert not any(word.startswith(("--uds", "--host", "--port", "--model=")) for word in other.argv)
    assert (head.defaults["VLLM_HOST_IP"], other.defaults["VLLM_HOST_IP"]) == ("10.0.0.1", "10.0.0.2")
    assert (head.defaults["VLLM_PORT"], other.defaults["VLLM_PORT"]) == ("20001", "20009")
    for command in (head, other):
        assert command.defaults["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
        assert (command.defaults["GLOO_SOCKET_IFNAME"], command.defaults["NCCL_SOCKET_IFNAME"]) == ("eth1", "=eth1")
        assert set(command.env) == {"VLLM_API_KEY", *CLOSED}, "all else can be said otherwise by --env"


def test_ranks_of_vllm_with_gpus_and_stages(model, address):
    command = engine(vllm).command(one_of_two(vllm, model, 1, 2, pp=2, interface=""), address(vllm))
    assert {"--tensor-parallel-size=2", "--pipeline-parallel-size=2"} <= set(command.argv)
    assert "--enforce-eager" not in command.argv
    assert not {"VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"} & set(command.defaults)
    assert "--enforce-eager" not in engine(vllm).command(one_of_two(vllm, model, 1, pp=2), address(vllm)).argv
    assert "--no-enforce-eager" in engine(vllm).command(one_of_two(vllm, model, 1, enforce_eager=False), address(vllm)).argv


def test_cpu_threads_of_ranks_on_one_machine(model, address, monkeypatch):
    monkeypatch.setattr("xi_plugins.engines.vllm.ranks.cpus", lambda: 8)
    apart, beside = (engine(vllm).command(one_of_two(vllm, model, 0, host=host), address(vllm)) for host in ("10.0.0.1", "10.0.0.2"))
    assert (apart.defaults["OMP_NUM_THREADS"], beside.defaults["OMP_NUM_THREADS"]) == ("8", "4")


def test_ranks_of_sglang(model, address):
    for rank in (0, 1):
        command = engine(sglang).command(one_of_two(sglang, model, rank, 2), address(sglang))
        wanted = {"--nnodes=2", f"--node-rank={rank}", "--dist-init-addr=10.0.0.1:20000", "--tensor-parallel-size=4", "--port=4711"}
        assert wanted | {f"--nccl-port={20007 + 8 * rank}"} <= set(command.argv)
        assert command.defaults["SGLANG_HOST_IP"] == f"10.0.0.{rank + 1}"
        assert command.defaults["GLOO_SOCKET_IFNAME"] == "eth1"
    six = engine(sglang).command(one_of_two(sglang, model, 0, host="fd00::1"), address(sglang))
    assert "--dist-init-addr=[fd00::1]:20000" in six.argv


def test_sign_of_a_headless_rank():
    assert engine(vllm).joined("(MainProcess pid=7) INFO [serve.py:224] Launching vLLM (v0.32.0) headless multiproc executor, with head …")
    assert not engine(vllm).joined("INFO Starting to load model")


# ---- the manifest -----------------------------------------------------------------------------------


@PLUGINS
def test_model_without_a_template_does_not_chat(plugin, tmp_path):
    loaded = engine(plugin).loaded(plan(plugin, tmp_path), {"max_model_len": 77})
    assert (loaded.context_length, set(loaded.manifest.endpoints)) == (77, {COMPLETIONS})


@PLUGINS
@pytest.mark.parametrize("parser", [False, True])
def test_tools_need_a_parser(plugin, model, parser):
    options = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True} if parser else {}
    loaded = engine(plugin).loaded(plan(plugin, model, **options), {"max_model_len": 77})
    assert loaded.manifest.endpoints[CHAT]["tools"].state == ("yes" if parser else "no")
    assert widened(loaded.manifest, info(plugin).manifest) == []


# ---- requests ---------------------------------------------------------------------------------------


def test_expressions_of_vllm_have_asciis_classes():
    pytest.importorskip("llguidance")
    body = {"prompt": "x", "structured_outputs": {"regex": r"\d+/\w"}}
    sent = engine(vllm).body(ApiRequest(id=1, route=COMPLETIONS, body=body))["structured_outputs"]["regex"]
    assert [bool(re.fullmatch(sent, text)) for text in ("12/a", "٣/a", "1/é")] == [True, False, False]
    assert engine(vllm).body(ApiRequest(id=1, route=COMPLETIONS, body={"prompt": "x"})) == {"prompt": "x"}


def test_no_seed_means_random_to_vllm():
    bodies = [engine(vllm).body(ApiRequest(id=1, route=COMPLETIONS, body={"prompt": "x", "seed": seed})) for seed in (-2, -1, 0)]
    assert [body["seed"] for body in bodies] == [-2, 2**63 - 1, 0]


# ---- what comes back --------------------------------------------------------------------------------


@PLUGINS
def test_why_the_start_failed(plugin):
    failed = engine(plugin).failed_start
    usage = ["usage: s [--dtype DTYPE]", "s: error: unrecognized arguments: --dtipe=1"]
    assert isinstance(failed("ended with status 2", usage), UnknownOption)
    assert "did you mean --dtype" in failed("ended with status 2", usage).message
    name = plugin.__name__.split(".")[-2]
    gone = failed("ended with status 1", [f"ModuleNotFoundError: No module named '{name}._C'"])
    assert isinstance(gone, EngineNotInstalled)
    assert "pip install" in gone.message
    other = failed("was killed by SIGKILL", ["some line"])
    assert isinstance(other, EngineError)
    assert "some line" in other.message


@PLUGINS
@pytest.mark.parametrize("name", ["trust_remote_code", "trust-remote-code"])
def test_code_of_a_model_is_no_option_of_the_engine(plugin, name):
    with pytest.raises(UnknownOption, match="use --trust-remote-code of the launch") as caught:
        info(plugin).check_options({name: True})
    assert caught.value.param == "trust_remote_code"


@PLUGINS
@pytest.mark.parametrize("trust", [False, True])
def test_code_of_a_model_runs_where_the_plan_says_so(plugin, model, address, trust):
    made = plan(plugin, model)
    made.trust_remote_code = trust
    argv = engine(plugin).command(made, address(plugin)).argv
    assert [word for word in argv if "trust" in word] == (["--trust-remote-code"] if trust else [])


@PLUGINS
def test_the_context_goes_by_one_name(plugin):
    name = {vllm: "max_model_len", sglang: "context_length"}[plugin]
    assert info(plugin).check_options({"context-length": "2048"}) == {name: 2048}
    assert info(plugin).check_options({"max_model_len": 2048}) == {name: 2048}


@PLUGINS
@pytest.mark.parametrize("value", [0, -1, "many", 2.5, True])
def test_a_context_that_is_no_number(plugin, value):
    with pytest.raises(UnknownOption, match=r"context_length.*whole number from 1 on") as caught:
        info(plugin).check_options({"context_length": value})
    assert caught.value.param == "context_length"


@PLUGINS
def test_a_context_longer_than_the_models_own(plugin):
    said = {
        vllm: "ValueError: User-specified max_model_len (9999) is greater than the derived max_model_len (max_position_embeddings=1024.0 "
        "or model_max_length=None in model's config.json).",
        sglang: "ValueError: Warning: User-specified context_length (9999) is greater than the derived context_length (1024). This may",
    }[plugin]
    error = engine(plugin).failed_start("ended with status 1", [said])
    assert isinstance(error, UnknownOption)
    assert error.param == "context_length"
    assert "9999 is more than the 1024 that this model was made for" in error.message


def test_stages_of_vllm():
    assert engine(vllm).stage("Loading safetensors checkpoint shards:  50% Completed | 1/2") == ("loading weights", 0.5)
    assert engine(vllm).stage("nothing of note") is None


@PLUGINS
@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
def test_a_models_stops_are_sent_with_each_request(plugin, route):
    stops = {"stop": ["END"], "stop_token_ids": [3, 5]}
    asked = {"prompt": "x"} if route == COMPLETIONS else {"messages": [{"role": "user", "content": "x"}]}
    assert stops.items() <= engine(plugin).body(ApiRequest(id=1, route=route, body={**asked, **stops})).items()
    assert "stop_token_ids" not in engine(plugin).body(ApiRequest(id=1, route=route, body=asked))
