"""Packages that a launch brings are there when engines are asked whether they take its model."""

from xi_core.api.control import LaunchSpec
from xi_core.cluster.resolve import _with_packages
from xi_core.models.family import ModelSpec, SourceRef

MODEL = ModelSpec(name="m", format="gptq", source=SourceRef(source="local", id="/m"), packages=["one"])


def test_packages_of_the_launch_count_where_it_has_an_environment() -> None:
    assert _with_packages(MODEL, LaunchSpec(model_name="m")) is MODEL
    launch = LaunchSpec(model_name="m", virtual_env_packages=["gptqmodel>=5"])
    assert _with_packages(MODEL, launch).packages == ["one", "gptqmodel>=5"]
    assert _with_packages(MODEL, LaunchSpec(model_name="m", virtual_env_packages=["two"], enable_virtual_env=False)) is MODEL
