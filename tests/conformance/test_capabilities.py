"""What the built-in engines claim is what the parity suite proved on them, by its committed results. Engines of this environment check
themselves besides, at the end of their files."""

import msgspec
import pytest

from xi_core.api.openai import ChatRequest, CompletionRequest
from xi_core.engine.info import EngineInfo
from xi_core.plugins import PluginHub
from xi_core.testing.kit_limits import SAMPLES
from xi_core.testing.proofs import Parity, claimed, file_name

ENGINES = [info for info in PluginHub.load().engines if info.engine.startswith("xi_plugins.")]
OTHER_NAMES = {"max_completion_tokens", "top_logprobs"}
ALWAYS = {"model", "messages", "prompt", "stream", "user"}
each_engine = pytest.mark.parametrize("info", ENGINES, ids=lambda info: info.name)


@pytest.fixture
def results(info: EngineInfo, parity: dict[str, bytes]) -> Parity:
    assert file_name(info) in parity, f"no results of {info.name}: run `make test-engines`"
    return msgspec.json.decode(parity[file_name(info)], type=Parity)


@each_engine
def test_every_claim_is_proven(info: EngineInfo, results: Parity) -> None:
    if results.unproven:
        assert not results.proven, "it says why nothing could be proven, and holds proofs"
        return
    for route in info.manifest.endpoints:
        missing = claimed(info, route) - set(results.proven.get(route, ())) - set(results.excused.get(route, ()))
        assert not missing, f"{info.name} claims {sorted(missing)} on {route}, and no test of `make test-engines` proved it"


@each_engine
def test_every_proof_is_claimed(info: EngineInfo, results: Parity) -> None:
    for route, proven in results.proven.items():
        assert not set(proven) & set(results.excused.get(route, ())), "excused, and proven all the same"
        more = set(proven) - claimed(info, route)
        assert not more, f"the suite proved {sorted(more)} of {info.name} on {route}, and its manifest doesn't claim it"


@each_engine
def test_results_tell_the_version(info: EngineInfo, results: Parity) -> None:
    assert results.engine == info.name
    assert bool(results.version) != bool(results.unproven)


def test_results_are_of_engines(parity: dict[str, bytes]) -> None:
    assert sorted(parity) == sorted(file_name(info) for info in ENGINES)


def test_every_request_field_has_a_sample_that_is_refused_where_it_is_not_claimed() -> None:
    fields = {info.name for request in (ChatRequest, CompletionRequest) for info in msgspec.structs.fields(request)}
    assert fields - OTHER_NAMES - ALWAYS == set(SAMPLES)
