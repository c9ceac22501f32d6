"""`xi_core.cluster.requirement`: which packages a launch may bring."""

from __future__ import annotations

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.requirement import check_environment, check_packages, joined, needed, package_name
from xi_core.errors import Forbidden, InvalidRequest


@pytest.mark.parametrize(
    "text",
    [
        "torch",
        "torch==2.13.0",
        "xllamacpp >= 2026.9, <2027",
        "vllm[audio,video]~=0.32",
        "a==1.*",
        "x===1.0+cpu",
        "ruamel.yaml!=0.1",
        "a-b_c.d",
    ],
)
def test_names_with_versions_are_taken(text: str) -> None:
    check_packages([text])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "--index-url http://evil/simple",
        "-r requirements.txt",
        "-e .",
        "torch --index-url http://evil",
        "foo @ https://example.org/foo.whl",
        "git+https://example.org/foo.git",
        "./local",
        "/etc/passwd",
        "file:///tmp/foo.whl",
        "../foo",
        "foo.whl; python_version > '3'",
        "foo==1\n--index-url http://evil",
        "foo==1 bar",
        "foo==",
        "foo<script>",
        "-foo",
        "foo-",
        "föö",
        "a" * 300,
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="virtual_env_packages") as caught:
        check_packages(["torch", text])
    assert caught.value.param == "virtual_env_packages"


def test_too_many() -> None:
    with pytest.raises(InvalidRequest, match="101 packages; 100 at most"):
        check_packages(["a"] * 101)


def test_the_last_word_on_a_package_holds() -> None:
    assert joined(["xllamacpp>=2026.10", "torch"], ["Torch==2.13.0"], ["XLlamaCpp==2026.9.1"]) == ["Torch==2.13.0", "XLlamaCpp==2026.9.1"]
    assert joined(["a<3", "a>1"]) == ["a<3", "a>1"], "two words of one side hold together"
    assert package_name("Foo._-Bar[x]>=1") == "foo-bar"


def test_extras_of_installed_distributions_are_spelt_out() -> None:
    found = needed(["xi-inference[llama-cpp]", "other>=1", "not-there-at-all[x]"])
    assert any(line.startswith("xllamacpp") for line in found)
    assert not any("extra" in line or line.startswith("xi-inference") for line in found)
    assert found[-2:] == ["other>=1", "not-there-at-all[x]"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"enable_virtual_env": False, "virtual_env_packages": ["a"]}, "enable_virtual_env"),
        ({"virtual_env_find_links": ["/wheels"]}, "virtual_env_find_links"),
        ({"virtual_env_packages": ["-r x"]}, "virtual_env_packages"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_environment(LaunchSpec(model_name="m", **fields), True)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_a_server_may_build_none() -> None:
    check_environment(LaunchSpec(model_name="m"), False)
    with pytest.raises(Forbidden, match="XI_ALLOW_VIRTUAL_ENV=0"):
        check_environment(LaunchSpec(model_name="m", virtual_env_packages=["a"]), False)
