"""Options of every built-in engine with a definition of its own: a typo is named, the right ones are listed, and the context has one name.

vLLM's and SGLang's own parsers check theirs: test_child_engines.py and tests/engines.
"""

import msgspec
import pytest

from xi_core.engine.info import EngineInfo
from xi_core.errors import UnknownOption
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.llama_cpp import plugin as llama_cpp
from xi_plugins.engines.mlx import plugin as mlx
from xi_plugins.engines.transformers import plugin as transformers
from xi_plugins.engines.vllm.plugin import HostInfo

ENGINES = [info for module in (llama_cpp, mlx, transformers) for info in module.xi_engines()]
EACH = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.name)
HOST = HostInfo(system="linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)


def test_all_engines_are_here() -> None:
    assert [engine.name for engine in ENGINES] == ["llama.cpp", "llama-cpp-python", "mlx", "transformers"]


@EACH
@pytest.mark.parametrize("typo", ["context_lenght", "batchsize", "trust_remote_code", "dtipe"])
def test_a_typo_is_named_with_the_options_there_are(engine: EngineInfo, typo: str) -> None:
    assert engine.options is not None
    with pytest.raises(UnknownOption, match=f"engine {engine.name} has no option '{typo}'") as caught:
        engine.check_options({typo: 1})
    assert caught.value.param == typo
    for field in msgspec.structs.fields(engine.options):
        assert field.name in caught.value.message


@EACH
def test_the_context_goes_by_one_name(engine: EngineInfo) -> None:
    assert engine.check_options({"context-length": "2048"}) == {"context_length": 2048}


@EACH
@pytest.mark.parametrize("value", [0, -1, 1, "many", 2.5])
def test_a_context_out_of_bounds(engine: EngineInfo, value: object) -> None:
    with pytest.raises(UnknownOption, match=f"'context_length' of engine {engine.name}") as caught:
        engine.check_options({"context_length": value})
    assert caught.value.param == "context_length"


@pytest.mark.parametrize(("source", "trusted", "ok"), [("local", True, True), ("local", False, False), ("huggingface", True, True)])
def test_architectures_with_code_of_their_own(source: str, trusted: bool, ok: bool) -> None:
    model = ModelSpec(
        name="m", format="pytorch", source=SourceRef(source=source, id="a/m"), architecture="QWenLMHeadModel", remote_code=trusted
    )
    found = transformers.match(model, HOST)
    assert found.ok is ok
    assert ok or "--trust-remote-code" in found.reason
