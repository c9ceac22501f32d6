"""Batches: reading with every bad line named, sending with tries, what is kept when it is interrupted or goes on."""

import errno
import itertools
import json
import os
import threading

import msgspec
import pytest

from xi_core import batch
from xi_core.batch import read_requests, run
from xi_core.batch_results import BEGINNING, Reply, Result, Results
from xi_core.errors import ChannelClosed, Conflict, DeadlineExceeded, InvalidRequest, LaunchFailed, Overloaded, Unavailable

CHAT = "/v1/chat/completions"


def line(custom_id="1", url=CHAT, body=None, **fields):
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m"} if body is None else body, **fields})


@pytest.fixture
def source(tmp_path):
    def write(*lines):
        path = tmp_path / "in.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out.jsonl"


def written(path):
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


# ---- reading ---------------------------------------------------------------------------------------


def test_read(source):
    path = source(line("a", body={"model": "x", "n": 1}), "", line("ü", "/v1/completions", {"prompt": "p", "model": "y", "stream": False}))
    first, second = read_requests(path, None)
    assert (first.custom_id, first.url, first.model, json.loads(first.body)) == ("a", CHAT, "x", {"model": "x", "n": 1})
    assert (second.custom_id, second.url, second.model) == ("ü", "/v1/completions", "y")
    for url, body in (("/v1/embeddings", {"input": ["a"]}), ("/v1/rerank", {"query": "q", "documents": ["d"]})):
        (one,) = read_requests(source(line("a", url, body)), "z")
        assert (one.url, json.loads(one.body)) == (url, {**body, "model": "z"})
    path = source(line("a"), line("b"))
    assert [json.loads(request.body)["model"] for request in read_requests(path, "z")] == ["z", "z"]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "Input data was truncated"),
        ("[]", "Expected `object`"),
        ("\ufeffx", "malformed"),
        ('{"method": "POST", "url": "/v1/completions", "body": {}}', "missing required field `custom_id`"),
        (line(""), "custom_id is empty"),
        (line(5), r"Expected `str`, got `int` - at `\$.custom_id`"),
        (line(method="GET"), "'GET'"),
        (line(url="/v1/images"), "url '/v1/images' is none of /v1/chat/completions"),
        (line(body=[]), r"at `\$.body`"),
        (line(body={}), "names no model"),
        (line(body={"model": 5}), "names no model"),
        (line(body={"model": "m", "stream": True}), "can't be streamed"),
        (line("twice"), "custom_id 'twice' is that of line 1 too"),
    ],
)
def test_bad_lines_are_named_and_nothing_is_read(source, bad, words):
    with pytest.raises(InvalidRequest, match=rf"nothing was sent:\nline 2: .*{words}"):
        read_requests(source(line("twice"), bad), None)


def test_many_bad_lines_are_counted(source):
    with pytest.raises(InvalidRequest, match=r"line 1: [^$]*line 10: .*\n… and 15 more$"):
        read_requests(source(*["x"] * 25), None)


def test_a_byte_order_mark_is_no_part_of_the_first_line(source):
    (one,) = read_requests(source("\ufeff" + line("a")), None)
    assert one.custom_id == "a"


def test_no_file_and_no_requests(source, tmp_path):
    with pytest.raises(InvalidRequest, match="can't be read: No such file"):
        read_requests(tmp_path / "nowhere", None)
    with pytest.raises(InvalidRequest, match="holds no requests"):
        read_requests(source("", " "), None)


# ---- sending ---------------------------------------------------------------------------------------


def go(source, target, ask, count=3, concurrency=2):
    told = []
    requests = read_requests(source(*(line(str(n)) for n in range(count))), None)
    with Results(target) as results:
        counts = run(requests, ask, results, concurrency, lambda counts, result: told.append(result.custom_id))
    return counts, told


def test_answers_are_written_in_openais_form(source, target):
    asked = []

    def ask(url, body):
        asked.append((url, json.loads(body)))
        return b'{\n "id": "cmpl-1",\n "choices": []}'

    counts, told = go(source, target, ask)
    assert (counts.total, counts.done, counts.failed, counts.skipped) == (3, 3, 0, 0)
    assert asked == [(CHAT, {"model": "m"})] * 3
    assert sorted(told) == ["0", "1", "2"]
    found = sorted(written(target), key=lambda one: one["custom_id"])
    assert len({one.pop("id") for one in found}) == 3
    answer = {"status_code": 200, "request_id": "cmpl-1", "body": {"id": "cmpl-1", "choices": []}}
    assert found == [{"custom_id": str(n), "response": answer, "error": None} for n in range(3)]
    assert all(text.startswith(BEGINNING) for text in target.read_bytes().splitlines())


def test_a_refusal_is_a_response_and_a_broken_channel_an_error(source, target):
    errors = iter([InvalidRequest("bad", param="n"), ChannelClosed("gone"), DeadlineExceeded("late")])

    def ask(url, body):
        raise next(errors)

    counts, _ = go(source, target, ask, concurrency=1)
    assert (counts.done, counts.failed) == (0, 3)
    refused, gone, late = written(target)
    error = {"message": "bad", "type": "invalid_request_error", "param": "n", "code": "invalid_request"}
    assert refused["response"] == {"status_code": 400, "request_id": "", "body": {"error": error}}
    assert refused["error"] is None
    assert (gone["response"], gone["error"]) == (None, {"code": "channel_closed", "message": "gone"})
    assert late["response"]["status_code"] == 504


@pytest.mark.parametrize("nothing", [b"null", b"", b"[]", b"<html>"])
def test_what_is_no_answer_is_asked_again_by_the_same_command(source, target, nothing):
    counts, _ = go(source, target, lambda url, body: nothing, count=1)
    assert (counts.done, counts.failed) == (0, 1)
    (found,) = written(target)
    assert (found["response"], found["error"]["code"]) == (None, "protocol_mismatch")
    counts, _ = go(source, target, lambda url, body: b'{"id": 5}', count=1)
    assert (counts.done, counts.skipped) == (1, 0)


def test_retries_wait_as_long_as_the_server_says(source, target, monkeypatch):
    waited = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waited.append(timeout))
    answers = iter([Overloaded("full", retry_after=3.0), Unavailable("not yet"), Unavailable("not yet"), b"{}"])

    def ask(url, body):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    requests = read_requests(source(line()), None)
    with Results(target) as results:
        work = batch._Work(requests, ask, results, batch.Counts(total=1), lambda counts, result: None)
        work.run()
    assert work.counts.done == 1
    assert [low <= seconds <= low * 1.2 for low, seconds in zip([3.0, 1.0, 2.0], waited, strict=True)] == [True] * 3


def test_a_server_that_says_soon_each_time_is_tried_for_two_minutes(source, target, monkeypatch):
    waited = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waited.append(timeout))

    def ask(url, body):
        raise Unavailable("it loads", retry_after=2.0)

    with Results(target) as results:
        work = batch._Work(read_requests(source(line()), None), ask, results, batch.Counts(total=1), lambda counts, result: None)
        work.run()
    assert isinstance(work.failure, Unavailable)
    lows = [2.0, 2.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert [low <= seconds <= low * 1.2 for low, seconds in zip(lows, waited, strict=True)] == [True] * 9


def test_retries_end(source, target, monkeypatch):
    monkeypatch.setattr(batch, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(batch, "LONGEST_WAIT", 0.002)
    tries = itertools.count(1)

    def ask(url, body):
        next(tries)
        raise Overloaded("full")

    counts, _ = go(source, target, ask, count=1)
    assert counts.failed == 1
    assert next(tries) == batch.MAX_TRIES + 1
    assert written(target)[0]["response"]["status_code"] == 429


@pytest.mark.parametrize("error", [Unavailable("no server"), LaunchFailed("the model has failed")])
def test_where_nobody_answers_any_more_the_batch_ends(source, target, monkeypatch, error):
    monkeypatch.setattr(batch, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(batch, "LONGEST_WAIT", 0.002)
    answers = iter([b"{}"])

    def ask(url, body):
        try:
            return next(answers)
        except StopIteration:
            raise error from None

    with pytest.raises(type(error), match=error.message):
        go(source, target, ask, count=50, concurrency=1)
    assert len(written(target)) == 1


def test_concurrency_is_bounded_and_reached(source, target):
    meeting, running, most = threading.Barrier(4, timeout=20), set(), []

    def ask(url, body):
        running.add(threading.get_ident())
        most.append(len(running))
        meeting.wait()
        running.discard(threading.get_ident())
        return b"{}"

    counts, _ = go(source, target, ask, count=8, concurrency=4)
    assert counts.done == 8, "four at a time meet, twice"
    assert max(most) == 4


def test_a_bug_in_ask_is_raised_not_swallowed(source, target):
    def ask(url, body):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        go(source, target, ask)


def test_a_disk_that_is_full_is_raised(source, target, monkeypatch):
    def full(self, result):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Results, "add", full)
    with pytest.raises(OSError, match="No space"):
        go(source, target, lambda url, body: b"{}")


def test_an_interrupt_keeps_what_is_done_and_writes_nothing_later(source, target, monkeypatch):
    hold, begun = threading.Event(), threading.Event()

    def ask(url, body):
        if "first" in body.decode():
            return b"{}"
        begun.set()
        hold.wait(20)
        return b"{}"

    requests = read_requests(source(line("a", body={"model": "first"}), line("b"), line("c")), None)

    def interrupted(self, timeout=None):
        assert begun.wait(20)
        raise KeyboardInterrupt

    before = threading.active_count()
    with Results(target) as results:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "join", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(requests, ask, results, 1, lambda counts, result: None)
        hold.set()
        while threading.active_count() > before:
            pass
    assert [one["custom_id"] for one in written(target)] == ["a"]
    asked = []
    with Results(target) as results:
        counts = run(requests, lambda url, body: asked.append(body) or b"{}", results, 4, lambda counts, result: None)
    assert (counts.skipped, counts.done, len(asked)) == (1, 2, 2)
    assert sorted(one["custom_id"] for one in written(target)) == ["a", "b", "c"]


def test_an_interrupt_before_all_threads_have_begun_writes_nothing_later(source, target, monkeypatch):
    hold, begun, start = threading.Event(), [], threading.Thread.start

    def starting(self):
        if begun:
            raise KeyboardInterrupt
        begun.append(self)
        start(self)

    def ask(url, body):
        hold.wait(20)
        return b"{}"

    monkeypatch.setattr(threading.Thread, "start", starting)
    requests = read_requests(source(line("a"), line("b")), None)
    with Results(target) as results:
        with pytest.raises(KeyboardInterrupt):
            run(requests, ask, results, 2, lambda counts, result: None)
        hold.set()
        begun[0].join(20)
    assert written(target) == []


# ---- the file of results ----------------------------------------------------------------------------


def result(custom_id, status=200):
    return msgspec.json.encode(Result(custom_id=custom_id, response=Reply(status_code=status, request_id="", body=msgspec.Raw(b"{}"))))


def test_failures_and_a_torn_line_are_taken_out(target):
    failed = msgspec.json.encode(Result(custom_id="x", error={"code": "c", "message": "m"}))
    good = result("a"), result("b")
    target.write_bytes(b"\n".join([good[0], failed, result("y", 400), good[1], result("z")[:50]]))
    target.chmod(0o640)
    with Results(target) as results:
        assert results.finished == {"a", "b"}
        results.add(msgspec.json.decode(result("c"), type=Result))
    assert target.read_bytes().splitlines()[:2] == list(good)
    assert [one["custom_id"] for one in written(target)] == ["a", "b", "c"]
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in target.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("cut", [1, 3, 7, 11, 30])
def test_a_line_torn_anywhere(target, cut):
    target.write_bytes(result("a") + b"\n" + result("b")[:cut])
    with Results(target) as results:
        assert results.finished == {"a"}
    assert [one["custom_id"] for one in written(target)] == ["a"]
    assert target.read_bytes().endswith(b"}\n")


def test_a_whole_last_line_without_its_break_counts(target):
    target.write_bytes(result("a"))
    with Results(target) as results:
        assert results.finished == {"a"}
        results.add(msgspec.json.decode(result("b"), type=Result))
    assert [one["custom_id"] for one in written(target)] == ["a", "b"]


def test_a_line_for_which_the_disk_has_no_room_leaves_nothing_that_a_later_one_would_be_joined_to(target, monkeypatch):
    write, sizes = os.write, iter([30, None])

    def full(file, data):
        size = next(sizes, len(data))
        if size is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, bytes(data)[:size])

    with Results(target) as results:
        results.add(msgspec.json.decode(result("a"), type=Result))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match="No space left"):
                results.add(msgspec.json.decode(result("b"), type=Result))
            results.add(msgspec.json.decode(result("c"), type=Result))  # of another thread, when there is room again
    with Results(target) as results:
        assert results.finished == {"a", "c"}


@pytest.mark.parametrize("other", [b"# Notes\nof mine\n", b"notes", b'{"id":"x"}\n', b"[]\n", b"\xff\n"])
def test_another_file_is_not_touched(target, other):
    target.write_bytes(result("a") + b"\n" + other)
    before = target.read_bytes()
    with pytest.raises(InvalidRequest, match="line 2, is no result of a batch"):
        Results(target)
    assert target.read_bytes() == before


def test_a_second_batch_is_refused(target):
    with Results(target), pytest.raises(Conflict, match="another batch is writing"):
        Results(target)
    Results(target).close()


def test_places_that_cant_be_written(tmp_path):
    with pytest.raises(InvalidRequest, match="can't be written: No such file"):
        Results(tmp_path / "no" / "where")
    with pytest.raises(InvalidRequest, match="can't be written"):
        Results(tmp_path)
    with pytest.raises(InvalidRequest, match="is no file"):
        Results(tmp_path.__class__("/dev/null"))


def test_reasons():
    assert Result(custom_id="a").reason == "no answer came"
    assert Result(custom_id="a", error={"code": "c", "message": "m"}).reason == "m"
    assert Result(custom_id="a", response=Reply(status_code=500, request_id="", body=msgspec.Raw(b"{}"))).reason == "status 500"
