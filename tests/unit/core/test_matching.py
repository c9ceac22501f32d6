"""Workers that go away while they are asked: the others' answers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from xi_core.api.control import LaunchSpec
from xi_core.cluster.matching import Matching, WorkerLink
from xi_core.cluster.messages import Inspect, Inspected, Matches, Register
from xi_core.engine.info import Support
from xi_core.errors import ArtifactError, ChannelClosed, ConfigError, DeadlineExceeded, InvalidRequest, Unavailable
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.plugins import PluginHub

MODEL = ModelSpec(name="toy", format="toy", source=SourceRef(source="local", id="/x"))


class Answering:
    """A link of which the other side takes the engine `e`."""

    async def call(self, command: Any) -> Any:
        return Inspected(MODEL) if isinstance(command, Inspect) else Matches([{"e": Support(ok=True)} for _ in command.models])


class Breaking:
    """A link that breaks as it is asked."""

    async def call(self, command: Any) -> Any:
        raise ChannelClosed("worker w1 has been silent for 1.5 s")


class Hanging:
    """A link of which the other side doesn't answer: a mount hangs there."""

    async def call(self, command: Any) -> Any:
        raise DeadlineExceeded("worker w1 did not answer Inspect within 30 s")


class Unreadable(Answering):
    """A link of which the other side lacks the directory."""

    async def call(self, command: Any) -> Any:
        if isinstance(command, Inspect):
            raise ArtifactError("/x is missing here")
        return await super().call(command)


def matching(*links: Any, source: str = "huggingface") -> Matching:
    def register(name: str) -> Register:
        return Register(worker=name, incarnation="i", pid=1, keeper_pid=2, version="0", protocol=1, devices=[], engines={})

    workers = {f"w{n}": WorkerLink(register(f"w{n}"), link) for n, link in enumerate(links, 1)}

    async def present() -> Mapping[str, WorkerLink]:
        return workers

    hub = PluginHub.load()
    return Matching(hub, present, source)


async def test_the_others_answer_for_one_that_is_lost() -> None:
    assert await matching(Breaking(), Answering()).match([MODEL]) == [{"e": Support(ok=True)}]
    assert (await matching(Breaking(), Answering())._inspect("/x")).name == "toy"
    assert (await matching(Unreadable(), Breaking(), Answering())._inspect("/x")).name == "toy"


async def test_the_others_answer_for_one_that_hangs() -> None:
    assert await matching(Hanging(), Answering()).match([MODEL]) == [{"e": Support(ok=True)}]
    assert (await matching(Hanging(), Answering())._inspect("/x")).name == "toy"
    assert (await matching(Unreadable(), Hanging(), Answering())._inspect("/x")).name == "toy"


async def test_where_all_hang_nobody_is_said_to_have_gone_away() -> None:
    with pytest.raises(DeadlineExceeded, match=r"^worker w1 did not answer Inspect within 30 s$"):
        await matching(Hanging(), Hanging()).match([MODEL])
    with pytest.raises(DeadlineExceeded):
        await matching(Hanging())._inspect("/x")
    with pytest.raises(ArtifactError, match="missing here"):
        await matching(Hanging(), Unreadable())._inspect("/x")


async def test_where_all_are_lost_that_is_said_and_may_be_tried_again() -> None:
    with pytest.raises(Unavailable, match=r"worker w1 went away while it was asked: worker w1 has been silent for 1\.5 s") as raised:
        await matching(Breaking(), Breaking()).match([MODEL])
    assert raised.value.retry_after == 1.0
    with pytest.raises(Unavailable, match="worker w1 went away"):
        await matching(Breaking()).candidates(LaunchSpec(model_name="/x", model_uid="x"))


async def test_a_reason_of_the_model_goes_before_a_lost_worker() -> None:
    with pytest.raises(ArtifactError, match="missing here"):
        await matching(Breaking(), Unreadable())._inspect("/x")


async def test_an_unknown_source_is_a_mistake_of_whoever_names_it() -> None:
    with pytest.raises(InvalidRequest, match="unknown model source 'nope'; known: ") as caught:
        await matching().candidates(LaunchSpec(model_name="xi-tiny", source="nope"))
    assert caught.value.param == "source"
    with pytest.raises(ConfigError) as of_setting:
        await matching(source="nope").candidates(LaunchSpec(model_name="xi-tiny"))
    assert of_setting.value.param == "XI_MODEL_SRC"
