"""Which devices a model is loaded on, and how it is spread over several. The devices are made up: none of these tests needs one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from xi_core.errors import LaunchFailed, UnknownOption  # noqa: E402
from xi_plugins.engines.transformers import devices, loading  # noqa: E402

GIB = 2**30


@pytest.fixture
def four_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((device.index + 1) * 10 * GIB, 80 * GIB))


def names(layout: devices.Layout) -> list[str]:
    return [str(device) for device in layout.devices]


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize(
    ("option", "given", "wanted"),
    [
        ("auto", [], ["cpu"]),
        ("auto", ["cuda:2"], ["cuda:2"]),
        ("cpu", ["cuda:2"], ["cpu"]),
        ("cuda", [], ["cuda:0"]),
        ("auto", ["cuda:6"], ["cuda:0"]),  # a replica's process sees its own devices only, numbered from 0
        ("auto", ["cuda:1", "cuda:3"], ["cuda:1", "cuda:3"]),
        ("auto", ["cuda:5", "cuda:7"], ["cuda:0", "cuda:1"]),
        ("auto", ["rocm:1"], ["cuda:1"]),
        ("auto", ["rocm:5", "rocm:7"], ["cuda:0", "cuda:1"]),
        ("auto", ["mps:0"], ["cpu"]),
    ],
)
def test_the_devices_are_those_of_the_launch(option: str, given: list[str], wanted: list[str]) -> None:
    assert names(devices.choose_layout(option, given, None)) == wanted


@pytest.mark.usefixtures("four_devices")
def test_memory_is_named_for_exactly_the_devices_of_the_launch() -> None:
    layout = devices.choose_layout("auto", ["cuda:1", "cuda:3"], "sequential")
    assert layout.arguments() == {
        "device_map": "sequential",
        "max_memory": {1: int(0.9 * 20 * GIB), 3: int(0.9 * 40 * GIB), "cpu": 0},
    }
    assert devices.choose_layout("auto", ["cuda:1", "cuda:3"], None).arguments()["device_map"] == "auto"
    assert devices.choose_layout("auto", ["cuda:1"], None).arguments() == {"device_map": {"": torch.device("cuda", 1)}}


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_the_library_spreads_whole_layers_over_these_devices_only(monkeypatch: pytest.MonkeyPatch, device_map: Any) -> None:
    """The library's own planning, on a model without memory."""
    from transformers.integrations.accelerate import _get_device_map

    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4, "vocab_size": 96}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small))
    size = sum(weight.nbytes for weight in model.parameters())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(0.75 * size), size))
    layout = devices.choose_layout("auto", ["cuda:1", "cuda:3"], device_map)
    found = _get_device_map(model, hf_quantizer=None, **layout.arguments())
    assert set(found.values()) == {1, 3}
    layers = [found[f"model.layers.{i}"] for i in range(8)]
    assert layers == sorted(layers)
    assert set(layers) == {1, 3}


@pytest.mark.parametrize(
    ("option", "given", "device_map", "param", "words"),
    [
        ("cuda:0", ["cuda:0", "cuda:1"], None, "device", "the launch was given 2: leave the option out"),
        ("auto", ["cuda:0"], "balanced", "device_map", "the launch has 1: --n-gpu 2"),
        ("auto", [], "auto", "device_map", "the launch has 0"),
        ("auto", ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:4"], None, "n_gpu", "given 5 devices, .* finds 4"),
    ],
)
@pytest.mark.usefixtures("four_devices")
def test_what_cannot_be_is_refused(option: str, given: list[str], device_map: Any, param: str, words: str) -> None:
    with pytest.raises(UnknownOption, match=words) as caught:
        devices.choose_layout(option, given, device_map)
    assert caught.value.param == param


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize(("option", "given", "param"), [("cuda:0", [], "device"), ("auto", ["cuda:0", "cuda:1"], "n_gpu")])
def test_without_cuda_the_reason_is_given(option: str, given: list[str], param: str) -> None:
    with pytest.raises(UnknownOption, match="finds no CUDA device") as caught:
        devices.choose_layout(option, given, None)
    assert caught.value.param == param


@pytest.mark.usefixtures("four_devices")
def test_a_model_of_one_device_refuses_two() -> None:
    with pytest.raises(UnknownOption, match="use --n-gpu 1, or --replica 2"):
        devices.choose_device("auto", ["cuda:0", "cuda:1"])


def test_a_part_that_found_no_room_ends_the_launch() -> None:
    layout = devices.Layout(devices=(torch.device("cuda", 0), torch.device("cuda", 1)))
    loading.check_placement(SimpleNamespace(hf_device_map={"a": 0, "b": 1}), layout)
    with pytest.raises(LaunchFailed, match=r"not enough memory on cuda:0, cuda:1 .* no room for b and 1 more"):
        loading.check_placement(SimpleNamespace(hf_device_map={"a": 0, "b": "disk", "c": "cpu"}), layout)
