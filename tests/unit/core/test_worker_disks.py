"""Lists and removals over the disks of several workers: one that is lost or refuses keeps the others from nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xi_core.cluster.messages import FoundModels, FreedModels, ListCache, RemoveCache, RemoveEnvironment
from xi_core.cluster.worker_disks import WorkerDisks
from xi_core.errors import ChannelClosed, Conflict, NotFound, Unavailable

AWAY = ChannelClosed("the link is closed")
NONE = NotFound("'m' is not in the cache")
USED = Conflict("'m' is used by m-0")


def disks(*answers: Any) -> Any:
    """Asks workers of which each answers so, or raises it; they are in `asked`."""
    asked: list[Any] = []

    def worker(answer: Any) -> Any:
        async def call(command: Any) -> Any:
            asked.append(command)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return SimpleNamespace(link=SimpleNamespace(call=call))

    executor: Any = SimpleNamespace(workers={f"w{n}": worker(answer) for n, answer in enumerate(answers)})
    hub: Any = SimpleNamespace(families=[])
    calls = WorkerDisks(hub, executor).calls()
    return SimpleNamespace(ask=lambda command: calls[type(command)](command), asked=asked)


async def test_a_lost_worker_does_not_hide_what_the_others_have() -> None:
    some: Any = FoundModels(["of w1"])  # type: ignore[list-item]
    assert (await disks(AWAY, some).ask(ListCache())).models == ["of w1"]
    with pytest.raises(Unavailable, match="no worker answered: w0"):
        await disks(AWAY, AWAY).ask(ListCache())
    assert (await disks().ask(ListCache())).models == []


async def test_what_one_worker_uses_is_removed_from_the_others() -> None:
    made = disks(USED, FreedModels(freed=7), AWAY)
    with pytest.raises(Conflict, match="used by m-0"):
        await made.ask(RemoveCache(name="m"))
    assert len(made.asked) == 3


async def test_only_where_no_worker_has_it_it_is_missing() -> None:
    assert (await disks(NONE, FreedModels(freed=7)).ask(RemoveCache(name="m"))).freed == 7
    with pytest.raises(NotFound):
        await disks(NONE, NONE, AWAY).ask(RemoveCache(name="m"))


@pytest.mark.parametrize("command", [RemoveCache(name="m"), RemoveEnvironment(name="e")])
async def test_a_removal_that_no_worker_hears_of_is_no_success(command: Any) -> None:
    with pytest.raises(Unavailable, match="no worker is connected, so nothing was removed") as caught:
        await disks().ask(command)
    assert caught.value.retry_after == 1.0
