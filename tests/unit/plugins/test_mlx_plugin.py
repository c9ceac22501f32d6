"""The light part of the engine `mlx`: descriptor, probe, match, options, and what it makes of rotary parameters."""

from __future__ import annotations

from typing import Any

import pytest

from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.errors import ArtifactError, UnknownOption
from xi_core.models.family import ModelSpec, SourceRef
from xi_plugins.engines.mlx import plugin, rotary

HOST = HostInfo(system="Darwin", machine="arm64", python="3.11", cpus=8, memory=2**34)


def info() -> EngineInfo:
    return plugin.xi_engines()[0]


def spec(format: str = "mlx", id: str = "/models/m", **fields: str) -> ModelSpec:
    return ModelSpec(name="m", format=format, source=SourceRef(source="local", id=id), **fields)


@pytest.mark.parametrize(
    ("wanted", "ok"),
    [
        (spec(), True),
        (spec(format="pytorch"), True),
        (spec(format="ggufv2", id="m.gguf"), False),
        (spec(format="pytorch", id="/models/m.GGUF"), False),
        (spec(model_type="embedding"), False),
    ],
)
def test_match(wanted: ModelSpec, ok: bool) -> None:
    support = plugin.match(wanted, HOST)
    assert support.ok is ok
    assert ok or support.reason


def test_options_are_typed_and_named() -> None:
    found = info().check_options({"batch-size": "4", "context_length": 128, "prefill-chunk": "64", "prefill_batch": 2})
    assert found == {"batch_size": 4, "context_length": 128, "prefill_chunk": 64, "prefill_batch": 2}


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("context_length", 1), ("prefill_chunk", 1), ("prefill_batch", 0), ("dtype", 1)]
)
def test_wrong_options_are_refused(name: str, value: object) -> None:
    with pytest.raises(UnknownOption, match=name) as caught:
        info().check_options({name: value})
    assert caught.value.param == name


def test_first_choice_only_on_apple_silicon() -> None:
    def on(system: str, machine: str) -> HostInfo:
        return HostInfo(system=system, machine=machine, python="3.12.0", cpus=8, memory=0)

    from xi_plugins.engines.llama_cpp import plugin as llama_cpp
    from xi_plugins.engines.transformers import plugin as transformers

    apple, *others = on("darwin", "arm64"), on("linux", "x86_64"), on("darwin", "x86_64")
    rest = [module.xi_engines()[0] for module in (llama_cpp, transformers)]
    assert plugin.priority(apple) > max(engine.priority_on(apple) for engine in rest)
    for host in others:
        assert plugin.priority(host) < min(engine.priority_on(host) for engine in rest)


# ---- rotary parameters --------------------------------------------------------------------------

FIELDS: dict[str, Any] = {"model_type": None, "rope_theta": 1e6, "rope_scaling": None}
LINEAR = {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0}


def test_rope_theta_comes_out_of_rope_parameters() -> None:
    config = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert rotary.complete(config, FIELDS) == {**config, "rope_theta": 5e5}


def test_scaling_comes_out_of_rope_parameters() -> None:
    found = rotary.complete({"rope_parameters": LINEAR, "rope_scaling": None}, FIELDS)
    assert found["rope_theta"] == 5e5
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({"rope_theta": 3.0}, FIELDS),
        ({"rope_parameters": LINEAR}, {**FIELDS, "rope_parameters": None}),
        ({"rope_parameters": LINEAR}, {"model_type": None}),
        ({}, FIELDS),
    ],
)
def test_nothing_is_added_where_the_library_reads_it_itself(config: dict[str, Any], fields: dict[str, Any]) -> None:
    assert rotary.complete(config, fields) == config


def test_what_stands_in_the_file_wins() -> None:
    assert rotary.complete({"rope_theta": 3.0, "rope_parameters": LINEAR}, FIELDS)["rope_theta"] == 3.0


def test_bases_by_kind_of_layer() -> None:
    config = {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}
    found = rotary.complete(config, {**FIELDS, "rope_local_base_freq": 1.0})
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (5e5, 1e4)
    with pytest.raises(ArtifactError, match="full_attention, sliding_attention"):
        rotary.complete(config, FIELDS)


def test_rope_parameters_without_a_base_are_refused() -> None:
    with pytest.raises(ArtifactError, match="without rope_theta"):
        rotary.complete({"rope_parameters": {"rope_type": "default"}}, FIELDS)


def test_a_base_that_nobody_named_is_refused() -> None:
    with pytest.raises(ArtifactError, match="write the model's rope_theta"):
        rotary.check_base({}, FIELDS)
    rotary.check_base({}, {"rope_theta": 10000})
    rotary.check_base({}, {"model_type": None})
    rotary.check_base({"rope_theta": 5.0}, FIELDS)
    rotary.check_base({"rope_parameters": LINEAR}, FIELDS)
