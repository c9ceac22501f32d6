"""The plugins `vLLM` and `SGLang` without their libraries: what they tell, refuse, run and read."""

import json
from importlib import metadata, util
from pathlib import Path

import pytest

from xi_core.engine.base import ApiRequest
from xi_core.engine.child_address import Address
from xi_core.engine.info import HostInfo
from xi_core.errors import ArtifactError, EngineError, EngineNotInstalled, UnknownOption
from xi_core.importing import import_path
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.serving.pooling_request import EMBEDDINGS, RERANK
from xi_core.serving.request import CHAT, COMPLETIONS
from xi_core.testing.harness import plan_for
from xi_core.wire.plan import LoraModule
from xi_plugins.engines.sglang import plugin as sglang
from xi_plugins.engines.vllm import plugin as vllm

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


# ---- probe and match --------------------------------------------------------------------------------


@PLUGINS
def test_probe(plugin, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    assert "pip install 'xi-inference[" in plugin.probe(HOST).reason
    monkeypatch.setattr(util, "find_spec", lambda name: object())
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.0")
    assert "or later is needed" in plugin.probe(HOST).reason
    monkeypatch.setattr(metadata, "version", lambda name: "0.99.0+cpu")
    assert plugin.probe(HOST).ok
    assert "0.99.0" in plugin.probe(HOST).reason
    mac = HostInfo(system="darwin", machine="arm64", python="3.11", cpus=2, memory=2**33)
    assert "runs on Linux" in plugin.probe(mac).reason

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert "not properly installed" in plugin.probe(HOST).reason


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
    assert command.env == {"VLLM_API_KEY": "secret"}
    assert int(command.defaults["VLLM_CPU_KVCACHE_SPACE"]) >= 1
    assert command.defaults["HF_HUB_OFFLINE"] == "1"


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
    assert loaded.manifest.narrowed_by(info(vllm).manifest) == loaded.manifest
    body = made.body(ApiRequest(id=1, route=route, body={"input": ["x"]}))
    assert body == ({"input": ["x"], "use_activation": True} if kind == "embedding" else {"input": ["x"]})


@PLUGINS
def test_template_of_the_family_goes_by_a_file(plugin, model, address):
    given = plan(plugin, model)
    given.chat_template = "{{ other }}"
    word = next(word for word in engine(plugin).command(given, address(plugin)).argv if word.startswith("--chat-template="))
    assert Path(word.partition("=")[2]).read_text() == "{{ other }}"


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
    assert loaded.manifest.narrowed_by(info(plugin).manifest) == loaded.manifest


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


def test_stages_of_vllm():
    assert engine(vllm).stage("Loading safetensors checkpoint shards:  50% Completed | 1/2") == ("loading weights", 0.5)
    assert engine(vllm).stage("nothing of note") is None
