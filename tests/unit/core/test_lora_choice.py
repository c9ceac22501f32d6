"""`xi_core.cluster.lora_choice`, alone and where the lifecycle asks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from xi_core.api.control import LaunchSpec
from xi_core.cluster.launches import LaunchEntry, Wanted
from xi_core.cluster.lifecycle import Lifecycle
from xi_core.cluster.lora_choice import check_engine, check_lora, check_names, check_taken, takes_lora
from xi_core.cluster.placement import ClusterView, Placement, PlacementRequest, Rejection, Scheduler
from xi_core.engine.info import EngineInfo, Support
from xi_core.errors import Conflict, InvalidRequest, LaunchError, NoPlacement
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.testing import fake_plugin

MODEL = ModelSpec(name="toy", format="fake", source=SourceRef(source="local", id="/x"))
CAN_NOT: EngineInfo = next(info for info in fake_plugin.xi_engines() if info.name == "counting")
CAN: EngineInfo = replace(CAN_NOT, name="able", lora=True)


def spec(uid: str = "base", *modules: str) -> LaunchSpec:
    return LaunchSpec(model_name="toy", model_uid=uid, lora_modules={name: f"/{name}" for name in modules})


def entry(uid: str, *modules: str) -> LaunchEntry:
    return LaunchEntry(
        wanted=Wanted(uid=uid, spec=spec(uid, *modules), model=MODEL, engine="able", n_gpu=0, created=1), replicas=[], deadline=None
    )


def test_a_module_may_not_have_the_launchs_own_name() -> None:
    check_names(spec("base", "sql"))
    with pytest.raises(InvalidRequest, match="'base' is the launch's own uid") as caught:
        check_names(spec("base", "sql", "base"))
    assert caught.value.param == "lora_modules"


def test_the_engine_must_serve_modules() -> None:
    check_engine(spec(), CAN_NOT, [CAN, CAN_NOT])
    check_engine(spec("base", "sql"), CAN, [CAN, CAN_NOT])
    with pytest.raises(LaunchError, match="engine counting serves no LoRA modules; engines that can: able") as caught:
        check_engine(spec("base", "sql"), CAN_NOT, [CAN, CAN_NOT])
    assert caught.value.param == "lora_modules"
    yes, no = Support(ok=True, reason="1.0"), Support(ok=False, reason="absent")
    assert takes_lora(spec("base", "sql"), CAN_NOT, yes) == Support(ok=False, reason="it serves no LoRA modules")
    assert takes_lora(spec("base", "sql"), CAN_NOT, no) is no
    assert takes_lora(spec("base", "sql"), CAN, yes) is takes_lora(spec(), CAN_NOT, yes) is yes


def test_the_model_must_generate_text() -> None:
    embedder = replace(MODEL, model_type="embedding")
    check_lora(spec("base", "sql"), MODEL)
    check_lora(spec(), embedder)
    with pytest.raises(LaunchError, match="beside models of type LLM; toy is of type embedding"):
        check_lora(spec("base", "sql"), embedder)


@pytest.mark.parametrize(
    ("wanted", "words", "param"),
    [
        (spec("new", "other"), "'other' is the uid of another launch", "lora_modules"),
        (spec("sql"), "'sql' is a LoRA module of 'base'; choose another uid", "model_uid"),
        (spec("new", "law", "sql"), "'sql' is a LoRA module of 'base' already", "lora_modules"),
    ],
)
def test_names_of_other_launches_are_taken(wanted: LaunchSpec, words: str, param: str) -> None:
    launches = [entry("base", "sql"), entry("other")]
    check_taken(spec("new", "law"), launches)
    check_taken(spec("base", "sql"), launches)  # the same launch
    with pytest.raises(Conflict, match=words) as caught:
        check_taken(wanted, launches)
    assert caught.value.param == param


def test_a_launch_that_has_ended_keeps_its_uid_only() -> None:
    ended = entry("base", "sql")
    ended.end = "FAILED"
    check_taken(spec("new", "sql"), [ended])
    check_taken(spec("sql"), [ended])
    with pytest.raises(Conflict, match="'base' is the uid of another launch; terminate that first"):
        check_taken(spec("new", "base"), [ended])
    assert entry("base", "sql", "law").route().adapters == ["law", "sql"]
    assert ended.route().adapters == []


class Nowhere(Scheduler):
    """Finds no place: nothing is placed before the names are looked at."""

    def place(self, request: PlacementRequest, cluster: ClusterView) -> Placement | Rejection:
        return Rejection(reason="nowhere")


@pytest.mark.parametrize(("second", "error"), [(spec("new", "sql"), Conflict), (spec("new", "law"), NoPlacement)])
def test_the_lifecycle_asks(second: LaunchSpec, error: type[Exception]) -> None:
    make: Callable[[LaunchSpec], Wanted] = lambda one: replace(entry(one.model_uid or "").wanted, spec=one)  # noqa: E731
    core = Lifecycle(Nowhere(), "e", launch_timeout=10.0, grace=1.0, settled_at=5.0)
    core.accept(0.0, make(spec("base", "sql")))  # not placed yet
    with pytest.raises(error):
        core.accept(6.0, make(second))
