"""Quantized weights in the engine `transformers`. What needs a library that isn't installed is skipped: `xi-inference[transformers-quantization]`
has them, and `make test-engine-transformers-quantization` runs these tests with them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import xi_plugins  # noqa: E402
from xi_core.engine.base import SamplingParams  # noqa: E402
from xi_core.engine.info import HostInfo  # noqa: E402
from xi_core.errors import EngineNotInstalled, UnknownOption  # noqa: E402
from xi_core.models.inspect import inspect  # noqa: E402
from xi_core.testing.harness import Harness, plan_for  # noqa: E402
from xi_plugins.engines.transformers import plugin, quantization  # noqa: E402
from xi_plugins.engines.transformers.engine import TransformersEngine  # noqa: E402
from xi_plugins.engines.transformers.plugin import Quantization, xi_engines  # noqa: E402

pytestmark = [
    pytest.mark.engine("transformers"),
    # torchao and bitsandbytes use parts of torch that it means to replace
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

XI_TINY = Path(xi_plugins.__file__).parent / "families" / "xi_tiny" / "hf"
EXPECTED = Path(__file__).parents[1] / "data" / "xi_tiny_expected.json"
HOST = HostInfo(system="linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)
PLAN = "xi_plugins.engines.transformers.engine:TransformersEngine"
LEAST_RIGHT = {
    "torchao-int8": 0.98,
    "torchao-int8-dynamic": 0.9,
    "torchao-float8": 0.9,
    "bitsandbytes-8bit": 0.9,
    "bitsandbytes-4bit": 0.4,
}
"""Share of xi-tiny's answers that must stay right to the token. A model of 1 M parameters has few bits to spare."""


def load(directory: Path = XI_TINY, **options: Any) -> TransformersEngine:
    engine = TransformersEngine()
    engine.load(plan_for(PLAN, str(directory), "pytorch", **{"threads": 1, **options}), lambda stage, share: None)
    return engine


def installed(name: str) -> Any:
    library = name.partition("-")[0]
    return pytest.param(name, marks=pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def right_answers(engine: TransformersEngine) -> float:
    """Share of the expected answers that the engine gives to the token, 32 at a time."""
    facts = json.loads(EXPECTED.read_text(encoding="utf-8"))["chat"][::2]
    ahead, found = list(enumerate(facts)), {i: [] for i in range(len(facts))}
    while ahead or engine.stats().running:
        while ahead and engine.has_capacity():
            id, fact = ahead.pop()
            engine.add(id, fact["prompt_ids"], SamplingParams(max_tokens=len(fact["answer_ids"]), temperature=0))
        output = engine.step()
        assert not output.errors
        for token in output.tokens:
            found[token.id].append(token.token)
    return sum(found[i] == fact["answer_ids"] for i, fact in enumerate(facts)) / len(facts)


@pytest.mark.parametrize("name", [installed(name) for name in LEAST_RIGHT])
def test_a_quantized_model_answers(name: str) -> None:
    engine = load(quantize=name)
    kinds = {type(module).__module__.partition(".")[0] for module in engine._runner._model.modules()}
    kinds |= {type(weight).__module__.partition(".")[0] for weight in engine._runner._model.parameters()}
    assert name.partition("-")[0] in kinds, "the weights are quantized"
    assert right_answers(engine) >= LEAST_RIGHT[name]


@pytest.mark.parametrize("name", [installed("torchao-int8")])
def test_a_quantized_model_is_served(name: str) -> None:
    with Harness(plan_for(PLAN, str(XI_TINY), "pytorch", threads=1, quantize=name)) as harness:
        facts = json.loads(EXPECTED.read_text(encoding="utf-8"))["chat"][:8]
        calls = [harness.start_chat(fact["prompt"], temperature=0) for fact in facts]
        assert sum(call.answer().text == fact["answer"] for call, fact in zip(calls, facts, strict=True)) >= 7


@pytest.mark.parametrize("name", [installed("bitsandbytes-4bit")])
def test_a_checkpoint_that_is_quantized_already_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = quantization.configuration(name, transformers.AutoConfig.from_pretrained(XI_TINY), torch.float32, torch.device("cpu"))
        model = transformers.AutoModelForCausalLM.from_pretrained(XI_TINY, quantization_config=made, device_map={"": "cpu"})
        model.save_pretrained(tmp_path)
    for file in XI_TINY.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    spec = inspect(tmp_path)
    assert spec.quantization == "bitsandbytes"
    assert plugin.match(spec, HOST).ok
    assert right_answers(load(tmp_path)) >= LEAST_RIGHT[name]
    with pytest.raises(UnknownOption, match=r"quantized already \(bitsandbytes\); launch it without the option") as caught:
        load(tmp_path, quantize=name)
    assert caught.value.param == "quantize"


BLOCK = 64


def in_fp8(folder: Path) -> Path:
    """xi-tiny as fp8 checkpoints are: matrices of 8-bit floats, with a scale for each block."""
    from safetensors.torch import load_file, save_file

    directory = stored(folder, quant_method="fp8", weight_block_size=[BLOCK, BLOCK], activation_scheme="dynamic")
    weights = {}
    for name, weight in load_file(directory / "model.safetensors").items():
        if "proj.weight" not in name:
            weights[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.float().reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
        scales = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
        weights[name] = (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scales
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return directory


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it needs kernels of the hub")
@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_an_fp8_checkpoint_is_served_on_a_cpu(tmp_path: Path, dtype: str) -> None:
    """Without a library more: its weights become as many bits as `dtype` says. They are not of the type of the weights beside them."""
    directory = in_fp8(tmp_path)
    spec = inspect(directory)
    assert spec.quantization == "fp8"
    support = plugin.match(spec, HOST)
    assert support.ok, support.reason
    engine = load(directory, dtype=dtype)
    assert len({weight.dtype for weight in engine._runner._model.parameters()}) == 1
    assert right_answers(engine) >= 0.9


@pytest.mark.skipif(torch.cuda.is_available(), reason="as above")
def test_an_fp8_checkpoint_answers_requests(tmp_path: Path) -> None:
    with Harness(plan_for(PLAN, str(in_fp8(tmp_path)), "pytorch", threads=1)) as harness:
        facts = json.loads(EXPECTED.read_text(encoding="utf-8"))["chat"][:8]
        calls = [harness.start_chat(fact["prompt"], temperature=0) for fact in facts]
        assert sum(call.answer().text == fact["answer"] for call, fact in zip(calls, facts, strict=True)) >= 7


def stored(tmp_path: Path, **quantization_config: Any) -> Path:
    directory = shutil.copytree(XI_TINY, tmp_path / "stored")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": quantization_config}), encoding="utf-8")
    return directory


@pytest.mark.parametrize("name", get_args(Quantization))
def test_quantized_twice_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownOption, match=r"quantized already \(gptq\)") as caught:
        load(stored(tmp_path, quant_method="gptq", bits=4, group_size=128), quantize=name)
    assert caught.value.param == "quantize"


@pytest.mark.skipif(find_spec("gptqmodel") is not None, reason="gptqmodel is installed")
def test_a_checkpoint_whose_library_is_missing_says_which(tmp_path: Path) -> None:
    with pytest.raises(EngineNotInstalled, match=r"needs a library more for this model: .*(gptqmodel|optimum)"):
        load(stored(tmp_path, quant_method="gptq", bits=4, group_size=128))


@pytest.mark.parametrize("name", ["torchao-int8", "bitsandbytes-8bit"])
def test_a_missing_library_is_named_with_the_pip_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda library: None)
    with pytest.raises(
        EngineNotInstalled, match=r"needs \w+, which is not installed: pip install 'xi-inference\[transformers-quantiz"
    ) as caught:
        load(quantize=name)
    assert caught.value.param == "quantize"


def test_what_needs_a_gpu_says_so() -> None:
    with pytest.raises(UnknownOption, match="torchao-int4 needs a GPU; on a CPU torchao-int8"):
        load(quantize="torchao-int4")


def test_an_unknown_way_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownOption, match="quantize") as caught:
        xi_engines()[0].check_options({"quantize": "int3"})
    assert caught.value.param == "quantize"
