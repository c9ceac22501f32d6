"""The body of `POST /v1/models`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.errors import InvalidRequest
from xi_server.routes.launching import NOT_YET, launch_spec


def spec(**fields: Any) -> LaunchSpec:
    return launch_spec(json.dumps({"model_name": "xi-tiny", **fields}).encode())


def test_the_least_body() -> None:
    assert spec() == LaunchSpec(model_name="xi-tiny")


def test_all_fields_in_xinferences_names() -> None:
    found = spec(
        model_uid="u", model_type="LLM", model_engine="transformers", model_format="pytorch", model_size_in_billions="0_5",
        quantization="none", replica=2, n_gpu=1, gpu_idx=[0, 1], model_path="/m", envs={"A": "b"},
        enable_thinking=True, tool_parser="hermes", reasoning_parser="qwen3",
    )  # fmt: skip
    assert found == LaunchSpec(
        model_name="xi-tiny", model_uid="u", model_engine="transformers", model_format="pytorch", size_in_billions="0.5",
        quantization="none", replica=2, n_gpu=1, gpu_idx=[0, 1], model_path="/m", env={"A": "b"},
        enable_thinking=True, tool_parser="hermes", reasoning_parser="qwen3",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "text"),
    [("0_5", "0.5"), ("0.5", "0.5"), (0.5, "0.5"), (7, "7"), ("7", "7"), (7.0, "7"), ("7.0", "7"), ("0_001", "0.001"), (70, "70")],
)
@pytest.mark.parametrize("name", ["model_size_in_billions", "size_in_billions"])
def test_sizes_have_one_form(name: str, given: Any, text: str) -> None:
    assert spec(**{name: given}).size_in_billions == text


@pytest.mark.parametrize("given", ["7B", "", "-1", "1.2.3", True, [7], {"a": 1}, "1e3"])
def test_what_is_no_size_is_refused(given: Any) -> None:
    with pytest.raises(InvalidRequest, match="no size in billions") as caught:
        spec(model_size_in_billions=given)
    assert caught.value.param == "model_size_in_billions"


@pytest.mark.parametrize(("given", "kept"), [("auto", "auto"), (2, 2), (0, 0), (None, None)])
def test_n_gpu(given: Any, kept: Any) -> None:
    assert spec(n_gpu=given).n_gpu == kept


@pytest.mark.parametrize(("given", "kept"), [(1, [1]), ([0, 2], [0, 2]), (None, None)])
def test_gpu_idx(given: Any, kept: Any) -> None:
    assert spec(gpu_idx=given).gpu_idx == kept


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_gpu", "two"), ("n_gpu", -1), ("n_gpu", True), ("n_gpu", 1.5), ("gpu_idx", -1), ("gpu_idx", "0"), ("gpu_idx", [0, 0]),
        ("gpu_idx", []), ("gpu_idx", [True]), ("replica", 0), ("replica", "2"), ("replica", 5000), ("model_uid", "a/b"), ("model_uid", "x" * 200),
        ("model_uid", 3), ("model_name", 3), ("model_name", ""), ("model_name", "x" * 5000), ("model_path", "x" * 5000), ("model_type", "video"), ("model_engine", []), ("options", [1]),
    ],
)  # fmt: skip
def test_wrong_types_and_ranges_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        spec(**{field: value})
    assert caught.value.param == field
    assert field in caught.value.message


@pytest.mark.parametrize("uid", ["a\n", "\n", "..", ".", "a b", "", "ä", "a/b"])
def test_a_uid_names_files_and_lines_so_it_is_plain(uid: str) -> None:
    with pytest.raises(InvalidRequest, match="can't be a uid: it has 1 to 128 letters") as caught:
        spec(model_uid=uid)
    assert caught.value.param == "model_uid"


@pytest.mark.parametrize("uid", ["a", "Qwen2.5-7B_x", ".hidden", "x" * 128])
def test_uids(uid: str) -> None:
    assert spec(model_uid=uid).model_uid == uid


def test_the_model_type_in_any_case() -> None:
    assert spec(model_type="llm") == spec(model_type="LLM") == spec()
    assert (spec(model_type="Embedding").model_type, spec(model_type="RERANK").model_type) == ("embedding", "rerank")


def test_env_values_are_text() -> None:
    with pytest.raises(InvalidRequest) as caught:
        spec(env={"A": 1})
    assert (caught.value.param or "").startswith("env")


def test_unknown_fields_are_options_and_nulls_are_nothing() -> None:
    found = spec(n_ctx=512, gpu_memory_utilization=0.9, flag=True, nothing=None, model_engine=None, options={"deep": {"a": [1]}})
    assert found.options == {"n_ctx": 512, "gpu_memory_utilization": 0.9, "flag": True, "deep": {"a": [1]}}
    assert found.model_engine is None


@pytest.mark.parametrize("field", sorted(NOT_YET))
def test_fields_that_can_not_be_honoured_yet_are_refused_by_name(field: str) -> None:
    value = 2 if field == "n_worker" else ["x"] if field.startswith("virtual_env") else True if field == "enable_virtual_env" else "x"
    with pytest.raises(InvalidRequest, match=f"{field} is not supported yet") as caught:
        spec(**{field: value})
    assert caught.value.param == field
    assert spec(**{field: None}) == LaunchSpec(model_name="xi-tiny")


def test_values_that_ask_for_nothing_are_fine() -> None:
    assert spec(n_worker=1, virtual_env_packages=[], request_limits=None) == LaunchSpec(model_name="xi-tiny")


def test_one_field_under_two_names_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="given twice"):
        spec(size_in_billions=7, model_size_in_billions=7)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"{}", b'{"model_name":null}', b'{"a":' + b"[" * 100_000])
def test_bad_bodies(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        launch_spec(body)
