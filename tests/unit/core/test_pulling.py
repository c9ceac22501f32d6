"""Downloads without a launch, as the supervisor sees them: which model, which workers, and what their answers come to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xi_core.api.pulls import PullOrder, PullStatus, WorkerPull
from xi_core.cluster.messages import FetchModel, GetPull, PullModel, StopPull
from xi_core.cluster.pulling import Pulling
from xi_core.errors import ChannelClosed, Forbidden, InvalidRequest, NotFound, WorkerNotFound
from xi_core.models.family import ModelSpec, SourceRef

MODEL = ModelSpec(name="m", format="pytorch", source=SourceRef(source="hub", id="a/m"))


class FakeLink:
    """A worker: it answers, or raises."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name, self.error, self.asked = name, error, []

    async def call(self, command: Any) -> PullStatus:
        self.asked.append(command)
        if self.error is not None:
            raise self.error
        return PullStatus(pull_id=command.pull_id, model_name="a/m", source="hub", workers=[WorkerPull(worker=self.name)])


def pulling(*links: FakeLink, found: tuple[ModelSpec, ...] = (MODEL,)) -> Any:
    workers = {link.name: SimpleNamespace(link=link, register=SimpleNamespace(address=f"10.0.0.{n}")) for n, link in enumerate(links)}

    async def any_workers() -> Any:
        return workers

    async def candidates(spec: Any) -> list[ModelSpec]:
        return list(found)

    matching = SimpleNamespace(candidates=candidates)
    executor: Any = SimpleNamespace(workers=workers, any_workers=any_workers, resolver=SimpleNamespace(matching=matching))
    hub: Any = SimpleNamespace(families=[])
    calls = Pulling(hub, executor).calls()
    return lambda command: calls[type(command)](command)


def order(**fields: Any) -> PullModel:
    return PullModel(order=PullOrder(model_name="a/m", **fields))


async def test_all_workers_pull_unless_some_are_named() -> None:
    links = [FakeLink("a"), FakeLink("b"), FakeLink("c")]
    ask = pulling(*links)
    status = await ask(order())
    assert [one.worker for one in status.workers] == ["a", "b", "c"]
    assert isinstance(links[0].asked[0], FetchModel)
    assert len({link.asked[0].pull_id for link in links} | {status.pull_id}) == 1
    assert [one.worker for one in (await ask(order(worker_ip="b, 10.0.0.2"))).workers] == ["b", "c"]
    with pytest.raises(WorkerNotFound, match="no worker 'moon' is connected; connected: a, b, c"):
        await ask(order(worker_ip="a,moon"))


async def test_one_worker_that_refuses_doesnt_hold_up_the_others() -> None:
    ask = pulling(FakeLink("a", Forbidden("no code here")), FakeLink("b"))
    assert [(one.worker, one.state, one.error) for one in (await ask(order())).workers] == [
        ("a", "FAILED", "no code here"),
        ("b", "RUNNING", None),
    ]
    with pytest.raises(Forbidden):
        await pulling(FakeLink("a", Forbidden("no code here")))(order())


async def test_how_far_it_is_comes_of_those_who_know() -> None:
    ask = pulling(FakeLink("a", NotFound("none")), FakeLink("b"), FakeLink("c", ChannelClosed("gone")))
    assert [one.worker for one in (await ask(GetPull(pull_id="1"))).workers] == ["b"]
    with pytest.raises(NotFound, match="knows a download '1'"):
        await pulling(FakeLink("a", NotFound("none")))(StopPull(pull_id="1"))


async def test_a_name_that_means_several_files_is_refused_with_them() -> None:
    other = ModelSpec(name="m", format="gptq", source=SourceRef(source="hub", id="a/m-GPTQ"), quantization="Int4")
    with pytest.raises(InvalidRequest, match=r"say which:\n  -s \? -f pytorch -q none   a/m\n  -s \? -f gptq -q Int4   a/m-GPTQ"):
        await pulling(FakeLink("a"), found=(MODEL, other))(order())
