"""Code that a model brings: the launch and the operator must both say yes."""

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.host import match_engines
from xi_core.cluster.remote_code import check_remote_code
from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.errors import Forbidden
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.wire.manifest import Manifest

HOST = HostInfo(system="linux", machine="x86_64", python="3.11", cpus=2, memory=2**33)


@pytest.mark.parametrize(("asked", "allowed"), [(False, False), (False, True), (True, True)])
def test_taken(asked: bool, allowed: bool) -> None:
    check_remote_code(LaunchSpec(model_name="m", trust_remote_code=asked), allowed)


def test_the_launch_alone_is_not_enough() -> None:
    with pytest.raises(Forbidden, match=r"--trust-remote-code.*XI_ALLOW_REMOTE_CODE=1") as caught:
        check_remote_code(LaunchSpec(model_name="m", trust_remote_code=True), False)
    assert (caught.value.status, caught.value.param) == (403, "trust_remote_code")


@pytest.mark.parametrize("reads", [False, True])
def test_pickled_weights_are_for_engines_that_heed_the_opt_in(reads: bool) -> None:
    def yes(*_: object) -> Support:
        return Support(ok=True)

    engine = EngineInfo(name="e", engine="m:C", formats=("pytorch",), manifest=Manifest(), probe=yes, match=yes, pickles=reads)
    model = ModelSpec(name="m", format="pytorch", source=SourceRef(source="local", id="/m"), pickled=True)
    found = match_engines([engine], model, HOST)["e"]
    assert found.ok is reads
    assert reads or "engine e doesn't read" in found.reason
