"""`ChildServerEngine` over the stub server: starts that fail, servers that die, hang and err, and what is left afterwards."""

import contextlib
import os
import signal
import socket
from collections import defaultdict
from typing import ClassVar

import msgspec
import psutil
import pytest

from xi_core.engine import child_server
from xi_core.engine.base import ApiRequest, ApiSink
from xi_core.errors import EngineError
from xi_core.testing.harness import Harness, plan_for
from xi_core.testing.stub_engine import StubServerEngine
from xi_core.testing.stub_server import TEXT as STUB_TEXT
from xi_core.testing.waiting import wait_until
from xi_core.wire.frames import Data, Open
from xi_core.wire.plan import LoraModule, RankAddress, Rendezvous, ServingLimits

ENGINE = "xi_core.testing.stub_engine:StubServerEngine"


class PortEngine(StubServerEngine):
    """The same on a port of loopback."""

    unix_socket = False


class ListeningEngine(StubServerEngine):
    """The same server without metrics: its log tells of its work."""

    metrics: ClassVar[dict[str, str]] = {}

    def works(self, line):
        return line.startswith("prefilled")


def plan(engine=ENGINE, **options):
    return plan_for(engine, "nowhere", "fake", **options)


@pytest.fixture
def harness():
    with Harness(plan()) as harness:
        yield harness


@pytest.fixture(autouse=True)
def nothing_left():
    """Whatever a test does, no process of it stays. Servers of other files' tests may run beside."""
    before = psutil.Process().children(recursive=True)
    yield
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    assert not [process for process in left if process.is_running()]


def child_of(harness):
    return harness.engine._child


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def fails_to_load(**options):
    engine = StubServerEngine()
    with pytest.raises(EngineError) as caught:
        engine.load(plan(**options), lambda *_: None)
    assert not os.path.exists(engine._address.folder)
    return caught.value.message


# ---- the start --------------------------------------------------------------------------------------


def test_stages_and_context_are_told(harness):
    assert harness.stages == ["starting the server", "loading weights"]
    assert harness.model.context_length == 512
    harness.engine.check()


def test_server_on_a_port():
    with Harness(plan(f"{__name__}:PortEngine")) as harness:
        assert child_of(harness) is not None
        assert harness.engine._address.socket is None
        assert harness.chat("Hi", temperature=0).status == 200


def test_death_at_start_shows_the_last_lines():
    message = fails_to_load(**{"die-at-start": "no such tensor: lm_head"})
    assert "ended with status 5" in message
    assert "no such tensor: lm_head" in message


def test_command_that_is_not_there():
    class Missing(StubServerEngine):
        def command(self, plan, address):
            found = super().command(plan, address)
            found.argv = ["/no/such/program"]
            return found

    with pytest.raises(EngineError, match="/no/such/program can't be run: No such file"):
        Missing().load(plan(), lambda *_: None)


def test_hang_at_start_ends_at_the_deadline():
    engine = StubServerEngine()
    hanging = msgspec.structs.replace(plan(**{"hang-at-start": True, "with-sibling": True}), limits=ServingLimits(launch_timeout=1.5))
    with pytest.raises(EngineError, match=r"was not ready after 1 s(?s:.*)loading with the key") as caught:
        engine.load(hanging, lambda *_: None)
    sibling = int(caught.value.message.rpartition("sibling ")[2])
    assert gone(sibling)


def test_the_key_stays_out_of_the_log(harness):
    key = harness.engine._address.key
    assert child_of(harness).lines[0] == "loading with the key ***"
    assert key not in " ".join(psutil.Process(child_of(harness).pid).cmdline())


def test_other_users_of_the_socket_are_refused(harness):
    with socket.socket(socket.AF_UNIX) as door:
        door.connect(harness.engine._address.socket)
        door.sendall(b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer guess\r\nContent-Length: 2\r\n\r\n{}")
        assert door.recv(64).startswith(b"HTTP/1.1 401")
    assert os.stat(harness.engine._address.folder).st_mode & 0o777 == 0o700


def test_the_child_is_in_our_process_group(harness):
    assert os.getpgid(child_of(harness).pid) == os.getpgid(0)


# ---- while it serves --------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "message"), [("#error", "it came apart"), ("#abort", "gave this answer up")])
def test_error_within_a_stream(harness, word, message):
    streamed = harness.chat(word, temperature=0, stream=True)
    assert message in streamed.events[-1]["error"]["message"]
    whole = harness.chat(word, temperature=0)
    assert whole.status == 500
    assert whole.error["code"] == "engine_error"
    assert harness.chat("Hi", temperature=0).status == 200


@pytest.mark.parametrize("word", ["#cut", "#garbage"])
def test_connection_that_breaks(harness, word):
    answer = harness.chat(word, temperature=0)
    assert answer.status == 500
    assert "broke off" in answer.error["message"]
    harness.engine.check()
    assert harness.chat("Hi", temperature=0).status == 200


def test_death_while_serving_fails_every_request():
    with Harness(plan(slots=8, **{"with-sibling": True})) as harness:
        waiting = [harness.start_chat("#hang", temperature=0, stream=True) for _ in range(3)]
        for call in waiting:
            assert isinstance(call.first(), Open)
        assert harness.chat("#die", temperature=0).status == 500
        for call in waiting:
            frames = []
            while not frames or b"error" not in frames[-1]:
                frame = call.first(5.0)
                frames.append(frame.data if isinstance(frame, Data) else b"")
            assert b"ended with status 7" in frames[-1]
        with pytest.raises(EngineError, match=r"ended with status 7(?s:.*)something broke"):
            harness.engine.check()
        assert "ended with status 7" in (harness.load().healthy is False and harness.service.unhealthy())
        sibling = int(next(line for line in child_of(harness).lines if line.startswith("sibling")).split()[1])
        wait_until(lambda: gone(sibling))


def test_kill_of_an_idle_child_is_noticed(harness):
    os.kill(child_of(harness).pid, signal.SIGKILL)
    wait_until(lambda: harness.load().healthy is False, 5.0)
    answer = harness.chat("Hi")
    assert (answer.status, answer.error["code"]) == (503, "unavailable")


def test_what_waits_when_the_child_is_killed_may_go_to_another_replica():
    with Harness(plan(slots=1)) as harness:
        running = harness.start_chat("#hang", temperature=0)
        wait_until(lambda: harness.engine.stats().tokens > 0)
        waiting = [harness.start_chat("Hi", temperature=0) for _ in range(3)]
        os.kill(child_of(harness).pid, signal.SIGKILL)
        for answer in [call.answer() for call in waiting]:
            assert (answer.status, answer.error["code"]) == (503, "unavailable")
            assert "was killed by SIGKILL" in answer.error["message"]
        assert running.answer().status == 500, "it may be what killed the child"


def test_hang_is_no_progress_and_abort_frees_the_slot():
    hasty = msgspec.structs.replace(plan(slots=1), limits=ServingLimits(hang_timeout=0.2))
    with Harness(hasty) as harness:
        call = harness.start_chat("#hang", temperature=0, stream=True)
        assert isinstance(call.first(), Open)
        wait_until(lambda: harness.load().healthy is False, 5.0)
        call.abort()
        harness.wait_idle()
        assert harness.chat("Hi", temperature=0).status == 200


@pytest.mark.parametrize("engine", [ENGINE, f"{__name__}:ListeningEngine"], ids=["metrics", "lines"])
def test_a_long_prompt_is_progress_where_metrics_or_lines_tell_of_it(engine):
    hasty = msgspec.structs.replace(plan(engine), limits=ServingLimits(hang_timeout=0.5))
    with Harness(hasty) as harness:
        call = harness.start_chat("#prefill", temperature=0, stream=True)
        wait_until(lambda: harness.load().healthy is False or not call.frames.empty())
        assert not call.frames.empty(), harness.service.unhealthy()
        assert call.answer().text == STUB_TEXT
        assert harness.engine.stats().steps > harness.engine.stats().tokens, "signs of work are no tokens"


def test_frozen_child_is_killed_at_close(harness):
    os.kill(child_of(harness).pid, signal.SIGSTOP)
    pid = child_of(harness).pid
    harness.engine.close(0.5)
    assert not psutil.pid_exists(pid)
    assert not os.path.exists(harness.engine._address.folder)


def test_submit_after_close():
    class Sink:
        said = ()

        def failed(self, *said, code=None):
            self.said = (*said, code)

    engine, sink = StubServerEngine(), Sink()
    engine.submit(ApiRequest(id=1, route="/v1/completions", body={}), sink)
    assert sink.said == (1, 503, "the engine is closed", "unavailable")
    engine.abort(1)
    engine.close(1.0)


def test_fault_of_a_subclass_costs_one_request(harness, monkeypatch):
    monkeypatch.setattr(harness.engine, "body", lambda request: 1 / 0)
    answer = harness.chat("Hi", temperature=0)
    assert answer.status == 500
    assert "log has the details" in answer.error["message"]
    monkeypatch.undo()
    assert harness.chat("Hi", temperature=0).status == 200


def test_the_end_of_each_request_is_told_to_a_subclass(harness, monkeypatch):
    ended = []
    monkeypatch.setattr(harness.engine, "ended", lambda request: ended.append(request.body["messages"][-1]["content"]))
    assert harness.chat("whole", temperature=0).status == 200
    monkeypatch.setattr(harness.engine, "body", lambda request: 1 / 0)
    assert harness.chat("failed", temperature=0).status == 500
    wait_until(lambda: ended == ["whole", "failed"])


# ---- ranks above 0 ----------------------------------------------------------------------------------


def follower(**options):
    made = plan(**options)
    world = tuple(RankAddress(rank=rank, worker=f"w{rank}", host="127.0.0.1", ports=(1, 2)) for rank in (0, 1))
    made.rendezvous = Rendezvous(rank=1, world=world)
    made.endpoint = ""
    return made


class Headless(StubServerEngine):
    """Its follower listens nowhere, and tells so."""

    def joined(self, line):
        return line.startswith("loading")


def test_follower_is_there_once_it_says_so_and_watched_from_then_on():
    engine = Headless()
    model = engine.load(follower(**{"hang-at-start": True, "with-sibling": True}), lambda *_: None)
    try:
        assert (model.context_length, model.slots, model.manifest.endpoints) == (0, 0, {})
        engine.check()
        wait_until(lambda: any(line.startswith("sibling") for line in engine._child.lines), 5.0)
        sibling = int(next(line for line in engine._child.lines if line.startswith("sibling")).split()[1])
        os.kill(engine._child.pid, signal.SIGKILL)

        def noticed():
            with contextlib.suppress(EngineError):
                engine.check()
                return False
            return True

        wait_until(noticed, 5.0)
        wait_until(lambda: gone(sibling), 5.0)
    finally:
        engine.close(1.0)
    assert not os.path.exists(engine._address.folder)


def test_follower_that_answers_needs_no_word_and_has_no_metrics():
    with contextlib.closing(Closing(follower())) as engine:
        assert engine._counters is None
        assert len(engine._tasks) == 1


class Closing(StubServerEngine):
    """Loaded, and closed without a grace."""

    def __init__(self, plan):
        super().__init__()
        self.load(plan, lambda *_: None)

    def close(self, grace=1.0):
        super().close(grace)


def test_silent_follower_counts_as_started_after_a_while(monkeypatch):
    monkeypatch.setattr(child_server, "FOLLOWING", 0.5)
    engine = StubServerEngine()
    engine.load(follower(**{"hang-at-start": True}), lambda *_: None)
    engine.check()
    engine.close(1.0)


def test_follower_that_dies_at_its_start_tells_why():
    with pytest.raises(EngineError, match=r"ended with status 5(?s:.*)no such card"):
        StubServerEngine().load(follower(**{"die-at-start": "no such card"}), lambda *_: None)


def test_a_models_own_stop_ends_answers_of_a_childs_server():
    stopping = plan()
    stopping.stop = [" three"]
    with Harness(stopping) as harness:
        answer = harness.chat("Hi", temperature=0)
        assert (answer.text, answer.finishes) == ("one two", ["stop"])
        assert len(harness.chat("Hi", temperature=0, ignore_eos=True, max_tokens=30).text) == 30


# ---- adapters, metrics, merged events ---------------------------------------------------------------


def test_adapter_answers_under_its_own_name():
    adapted = plan()
    adapted.lora_modules = [LoraModule(name="pirate", path="/nowhere")]
    engine, sink = StubServerEngine(), Gathering()
    engine.load(adapted, lambda *_: None)
    try:
        body = {"prompt": "Hi", "temperature": 0, "max_tokens": 9, "stop": [], "ignore_eos": False}
        for id, adapter in enumerate([None, "pirate", "parrot"]):
            engine.submit(ApiRequest(id=id, route="/v1/completions", body=body, adapter=adapter), sink)
        wait_until(lambda: len(sink.ended) == 3)
    finally:
        engine.close(1.0)
    assert sink.texts[0] == "one two t"
    assert sink.texts[1] == "pirate on"
    assert sink.ended == {0: "", 1: "", 2: "stub refused the request: no model parrot"}


class Gathering(ApiSink):
    """Keeps what comes."""

    def __init__(self):
        self.texts = defaultdict(str)
        self.ended = {}

    def event(self, id, data):
        self.texts[id] += "".join(choice.get("text", "") for choice in msgspec.json.decode(data)["choices"])

    def done(self, id):
        self.ended[id] = ""

    def failed(self, id, status, message, param=None, code=None):
        self.ended[id] = message


def test_metrics_of_the_server_ride_on_the_load(harness):
    wait_until(lambda: harness.load().engine is not None)
    counters = harness.load().engine
    assert (counters.running, counters.waiting, counters.cache_usage, counters.generated_tokens) == (5, 0, 0.5, 1000)


def test_server_without_metrics_is_not_asked_for_them(monkeypatch):
    monkeypatch.setattr(StubServerEngine, "metrics", {})
    with Harness(plan()) as harness:
        assert harness.chat("Hi", temperature=0).status == 200
        assert harness.load().engine is None


def test_many_streams_are_whole_and_in_order():
    with Harness(plan(slots=16, pace=0.001)) as harness:
        calls = [harness.start_chat("Hi", temperature=0, stream=True, max_tokens=count) for count in range(1, 17)]
        texts = [call.answer().text for call in calls]
    assert texts == [STUB_TEXT[:count] for count in range(1, 17)]
