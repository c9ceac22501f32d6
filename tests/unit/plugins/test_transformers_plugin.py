"""The light part of the engine `transformers`: descriptor, probe, match, options."""

from __future__ import annotations

import pytest

from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.errors import UnknownOption
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.transformers import plugin

HOST = HostInfo(system="Linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)


def info() -> EngineInfo:
    return plugin.xi_engines()[0]


def spec(format: str = "pytorch", id: str = "/models/m", **fields: str) -> ModelSpec:
    return ModelSpec(name="m", format=format, source=SourceRef(source="local", id=id), **fields)


@pytest.mark.parametrize(
    ("wanted", "ok"),
    [
        (spec(), True),
        (spec(format="ggufv2", id="m.gguf"), False),
        (spec(id="/models/m.GGUF"), False),
        (spec(model_type="embedding"), True),
        (spec(model_type="rerank"), True),
        (spec(model_type="video"), False),
        (spec(format="mlx"), False),
    ],
)
def test_match(wanted: ModelSpec, ok: bool) -> None:
    support = plugin.match(wanted, HOST)
    assert support.ok is ok
    assert ok or support.reason


def test_options_are_typed_and_named() -> None:
    found = info().check_options({"batch-size": "4", "dtype": "bfloat16", "device": "cuda:1", "prefill_chunk": 64})
    assert found == {"batch_size": 4, "dtype": "bfloat16", "device": "cuda:1", "prefill_chunk": 64}
    found = info().check_options({"quantize": "torchao-int8", "device-map": "balanced", "enable-prefix-caching": "false"})
    assert found == {"quantize": "torchao-int8", "device_map": "balanced", "enable_prefix_caching": False}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "int4"),
        ("device", "tpu"),
        ("batch_size", 0),
        ("context_length", 1),
        ("threads", 0),
        ("nonsense", 1),
        ("quantize", "8bit"),
        ("device_map", "cpu"),
        ("enable_prefix_caching", "maybe"),
    ],
)
def test_wrong_options_are_refused(name: str, value: object) -> None:
    with pytest.raises(UnknownOption, match=name) as caught:
        info().check_options({name: value})
    assert caught.value.param == name
