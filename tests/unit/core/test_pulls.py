"""Downloads without a launch on one worker, and how the client watches them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from xi_core import disk_client
from xi_core.api.pulls import PullOrder, PullStatus, WorkerPull
from xi_core.api.transfer import FileTransfer, ModelTransfer
from xi_core.client import Client
from xi_core.cluster import pulls as module
from xi_core.cluster.messages import FetchModel, GetPull, StopPull
from xi_core.cluster.pulls import Pulls
from xi_core.config import Settings
from xi_core.errors import ArtifactError, Conflict, Forbidden, LaunchCancelled, NotFound, Unavailable
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.models.pull_choice import as_launch
from xi_core.testing.waiting import until

MODEL = ModelSpec(name="m", format="pytorch", source=SourceRef(source="hub", id="a/m"))

COMING = ModelTransfer(done=5, total=10, files=[FileTransfer(name="m.gguf", done=5, total=10, rate=2.0, eta=2.5)], files_total=1)


class Worker:
    """`Pulls`, with downloads that wait for a word."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, config: Settings) -> None:
        self.go, self.error, self.refs = threading.Event(), None, []
        self.calls = Pulls("w", None, config).calls()  # type: ignore[arg-type]

        def pull(sources: object, home: Path, ref: SourceRef, progress: Any) -> Path:
            self.refs.append(ref)
            progress("downloading", 0.5, COMING)
            while not self.go.wait(0.01):
                progress("downloading", 0.5, COMING)
            if self.error:
                raise self.error
            return home / "there"

        monkeypatch.setattr(module, "pull", pull)

    async def ask(self, command: Any) -> WorkerPull:
        status: Any = await self.calls[type(command)](command)
        assert isinstance(status, PullStatus)
        return status.workers[0]

    async def ended(self, pull_id: str) -> WorkerPull:
        own = await self.ask(GetPull(pull_id=pull_id))
        await until(lambda: own.state != "RUNNING", 30, "the end")
        return own


async def test_a_pull_runs_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, Settings(home="/h"))
    own = await worker.ask(FetchModel(pull_id="1", model=MODEL))
    await until(lambda: own.progress == 0.5, 30, "progress")
    assert (own.state, own.stage, own.download) == ("RUNNING", "downloading", COMING)
    worker.go.set()
    own = await worker.ended("1")
    assert (own.state, own.path, own.error, own.download) == ("DONE", "/h/there", None, None)


async def test_a_pull_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, Settings(home="/h"))
    await worker.ask(FetchModel(pull_id="1", model=MODEL))
    await worker.ask(StopPull(pull_id="1"))
    assert (await worker.ended("1")).state == "CANCELLED"
    with pytest.raises(NotFound):
        await worker.ask(StopPull(pull_id="2"))


@pytest.mark.parametrize(
    ("error", "message"), [(ArtifactError("no such model"), "no such model"), (ZeroDivisionError("oh"), "ZeroDivisionError: oh")]
)
async def test_a_pull_that_fails(monkeypatch: pytest.MonkeyPatch, error: Any, message: str) -> None:
    worker = Worker(monkeypatch, Settings(home="/h"))
    worker.error = error
    worker.go.set()
    await worker.ask(FetchModel(pull_id="1", model=MODEL))
    own = await worker.ended("1")
    assert (own.state, own.error) == ("FAILED", message)


async def test_code_is_for_the_workers_operator_to_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(monkeypatch, Settings(home="/h"))
    with pytest.raises(Forbidden):
        await worker.ask(FetchModel(pull_id="1", model=MODEL, code=True))
    worker = Worker(monkeypatch, Settings(home="/h", allow_remote_code=True))
    worker.go.set()
    await worker.ask(FetchModel(pull_id="1", model=MODEL, code=True))
    await worker.ended("1")
    assert (worker.refs[0].code, worker.refs[0].pickled) == (True, False)


async def test_there_is_an_end_to_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_RUNNING", 2)
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    worker = Worker(monkeypatch, Settings(home="/h"))
    for number in range(2):
        await worker.ask(FetchModel(pull_id=str(number), model=MODEL))
    with pytest.raises(Conflict, match="2 downloads to do"):
        await worker.ask(FetchModel(pull_id="2", model=MODEL))
    worker.go.set()
    for number in range(2):
        await worker.ended(str(number))
    for number in range(2, 6):
        await worker.ask(FetchModel(pull_id=str(number), model=MODEL))
        await worker.ended(str(number))
    with pytest.raises(NotFound):
        await worker.ask(GetPull(pull_id="0"))
    assert (await worker.ask(GetPull(pull_id="5"))).state == "DONE"


def test_sizes_are_taken_as_numbers_too() -> None:
    assert as_launch(PullOrder(model_name="m", size_in_billions=0.5), []).size_in_billions == "0.5"
    assert as_launch(PullOrder(model_name="m", size_in_billions="0_5"), []).size_in_billions == "0.5"
    assert msgspec.json.decode(b'{"model_name": "m", "size_in_billions": 7}', type=PullOrder).size_in_billions == 7


# ---- the client ------------------------------------------------------------------------------------


def status(**states: str) -> PullStatus:
    workers = [
        WorkerPull(worker=name, state=state, path="/p", error="why" if state == "FAILED" else None) for name, state in states.items()
    ]  # type: ignore[arg-type]
    return PullStatus(pull_id="1", model_name="a/m", source="hub", workers=workers)


class Scripted(Client):
    """A client whose server answers from a list; an error is raised."""

    def __init__(self, *answers: PullStatus | Exception) -> None:
        super().__init__("http://127.0.0.1:1")
        self.answers, self.stopped = list(answers), []

    def start_pull(self, order: PullOrder) -> PullStatus:
        return self.pull_status("")

    def pull_status(self, pull_id: str) -> PullStatus:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop_pull(self, pull_id: str) -> PullStatus:
        self.stopped.append(pull_id)
        return status()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_client, "PULL_INTERVAL", 0.01)


ORDER = PullOrder(model_name="m")


def test_the_client_waits_for_every_worker() -> None:
    told: list[list[str]] = []
    client = Scripted(status(a="RUNNING", b="RUNNING"), status(a="DONE", b="RUNNING"), status(a="DONE", b="DONE"))
    done = client.pull(ORDER, lambda status: told.append([one.state for one in status.workers]))
    assert [one.path for one in done.workers] == ["/p", "/p"]
    assert told == [["RUNNING", "RUNNING"], ["DONE", "RUNNING"], ["DONE", "DONE"]]
    assert client.stopped == []


def test_a_server_and_a_worker_may_be_away_for_a_while() -> None:
    away = [status(a="RUNNING", b="RUNNING"), Unavailable("starting"), NotFound("nobody yet"), status(b="DONE"), status(a="DONE", b="DONE")]
    assert len(Scripted(*away).pull(ORDER).workers) == 2


def test_a_worker_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_client, "PULL_PATIENCE", 0.1)
    client = Scripted(status(a="RUNNING", b="RUNNING"), status(b="DONE"))
    with pytest.raises(Unavailable, match="worker a went away"):
        client.pull(ORDER)
    assert client.stopped == ["1"]


def test_the_reason_of_a_worker_that_refuses_is_told_once_the_others_have_ended() -> None:
    told: list[dict[str, str]] = []
    client = Scripted(status(a="FAILED", b="RUNNING"), status(b="RUNNING"), status(b="DONE"))
    with pytest.raises(ArtifactError, match=r"^a: why$"):
        client.pull(ORDER, lambda status: told.append({one.worker: one.state for one in status.workers}))
    assert told == [{"a": "FAILED", "b": "RUNNING"}, {"a": "FAILED", "b": "RUNNING"}, {"a": "FAILED", "b": "DONE"}], "not one more"
    assert client.stopped == []


def test_a_worker_whose_answer_was_lost_and_that_downloads_all_the_same_has_not_failed() -> None:
    client = Scripted(status(a="FAILED", b="RUNNING"), status(a="RUNNING", b="DONE"), status(a="DONE", b="DONE"))
    assert [one.state for one in client.pull(ORDER).workers] == ["DONE", "DONE"]


def test_a_failure_names_its_worker_and_a_stop_is_no_success() -> None:
    with pytest.raises(ArtifactError, match=r"^a: why$"):
        Scripted(status(a="FAILED", b="DONE")).pull(ORDER)
    with pytest.raises(LaunchCancelled, match="was stopped"):
        Scripted(status(a="CANCELLED")).pull(ORDER)


def test_who_leaves_early_ends_the_download() -> None:
    def leave(status: PullStatus) -> None:
        raise KeyboardInterrupt

    client = Scripted(status(a="RUNNING"))
    with pytest.raises(KeyboardInterrupt):
        client.pull(ORDER, leave)
    assert client.stopped == ["1"]
