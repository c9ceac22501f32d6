"""Which variables a launch may set for its replicas."""

from __future__ import annotations

import pytest

from xi_core.cluster.envrules import allowed_prefixes, check_env
from xi_core.config import Settings
from xi_core.errors import ConfigError, InvalidRequest


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "ld_library_path", "PYTHONPATH", "PythonHome", "PATH", "path", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "A=B", "", "1A", "A B",
     "A\n", "Ä", "A-B", "XI_REPLICA_ID", "CUDA_VISIBLE_DEVICES", "DYLD_INSERT_LIBRARIES"],
)  # fmt: skip
def test_env_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is refused") as caught:
        check_env({"GOOD": "1", name: "x"})
    assert caught.value.param == "env"


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "a\rb"])
def test_env_values_that_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="line break or NUL"):
        check_env({"GOOD": value})


def test_env_that_is_fine() -> None:
    check_env({"OMP_NUM_THREADS": "2", "VLLM_USE_V1": "1", "_x": "", "MY_PATH": "/a b:/c"})


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "VLLM_USE_V1", "HF_HUB_OFFLINE", "MINE_LEVEL"])
def test_env_off_loopback_takes_what_engines_know_and_the_operator_adds(name: str) -> None:
    check_env({name: "1"}, allowed_prefixes(Settings(env_allow="MINE_, OURS_")))


@pytest.mark.parametrize("name", ["MY_PATH", "_x", "vllm_use_v1", "MINE", "GIT_SSH_COMMAND"])
def test_env_off_loopback_refuses_other_names(name: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"'{name}' is refused: other machines.*VLLM_.*MINE_.*XI_ENV_ALLOW") as caught:
        check_env({"OMP_NUM_THREADS": "1", name: "x"}, allowed_prefixes(Settings(env_allow="MINE_")))
    assert caught.value.param == "env"


@pytest.mark.parametrize("name", ["VLLM_LOGGING_CONFIG_PATH", "CUDA_INJECTION64_PATH", "NCCL_NET_PLUGIN", "HF_ENDPOINT"])
def test_env_off_loopback_names_no_files_unless_the_operator_says_so(name: str) -> None:
    """A model's repository may bring the file: vLLM calls what a logging set-up names, the others load a library."""
    value = {"HF_ENDPOINT": "https://elsewhere"}.get(name, "/models/m/config.json")
    with pytest.raises(InvalidRequest, match=rf"'{name}' is refused: other machines.*XI_ENV_ALLOW={name}"):
        check_env({name: value}, allowed_prefixes(Settings(env_allow="MINE_")))
    check_env({name: value, "MINE_FILE": "/a"}, allowed_prefixes(Settings(env_allow=f"MINE_,{name}")))
    check_env({name: value})


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "XI_HOME", "HF_PROXY"])
def test_env_that_the_operator_cannot_allow(name: str) -> None:
    with pytest.raises(InvalidRequest, match="could change which code runs"):
        check_env({name: "x"}, allowed_prefixes(Settings(env_allow="LD_,XI_,CUDA_")))


@pytest.mark.parametrize("text", ["A-B", "*", "1A", "A B_"])
def test_a_wrong_list_of_prefixes_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigError, match="XI_ENV_ALLOW") as caught:
        allowed_prefixes(Settings(env_allow=f"MINE_,{text}"))
    assert caught.value.param == "XI_ENV_ALLOW"
