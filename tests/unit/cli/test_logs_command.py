"""`xi logs`: the end of a replica's log, and the log before it."""

import signal

import pytest

from xi_cli import patience
from xi_cli.commands import logs as module

LOGS = "/v1/models/m/logs?rank=0&start={}"


def part(text, start=0, **fields):
    return {"replica_id": "m-0", "rank": 0, "worker": "w1", "text": text, "start": start, "next": start + len(text), **fields}


def test_it_goes_on_to_the_end(xi, server):
    server.script["GET", LOGS.format(-65536)] = part("one\n")
    server.script["GET", LOGS.format(4)] = part("two\n", 4)
    server.script["GET", LOGS.format(8)] = part("", 8)
    assert xi("logs", "m").stdout == "one\ntwo\n"


def test_a_log_with_nothing_in_it(xi, server):
    server.script["GET", LOGS.format(-65536)] = part("")
    result = xi("logs", "m")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "m-0 has written nothing yet (rank 0, worker w1)\n"


def test_the_log_before(xi, server):
    server.script["GET", LOGS.format(-65536) + "&previous=true"] = part("a last word\n", previous=True)
    server.script["GET", LOGS.format(12) + "&previous=true"] = part("", 12, previous=True)
    for option in ("--previous", "-p"):
        assert xi("logs", "m", option).stdout == "a last word\n"


def test_no_log_before(xi, server):
    server.script["GET", LOGS.format(-65536) + "&previous=true"] = part("", previous=True)
    result = xi("logs", "m", "--previous")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "m-0 has no earlier log, or an empty one (rank 0, worker w1)\n"


def test_a_log_before_is_not_followed(xi, server):
    result = xi("logs", "m", "-p", "-f")
    assert result.exit_code == 2
    assert "--previous shows a log that nobody writes to any more: leave -f/--follow out" in result.stderr
    assert server.seen == []


def test_a_log_that_grows_at_each_look_ends_where_no_more_was_asked_for(xi, server):
    """Else it would never end beside a replica that writes a line in the time of a request."""
    for start in (-8, 4, 8, 12):
        server.script["GET", LOGS.format(start)] = part("one\n", max(0, start))
    server.script["GET", LOGS.format(16)] = (404, {})
    result = xi("logs", "m", "-n", "8")
    assert (result.exit_code, result.stdout) == (0, "one\none\n")


@pytest.fixture
def follow(server, spawn, words, monkeypatch):
    """`xi logs m -f` until the log was asked for at the last of some starts, then Ctrl-C: what it wrote."""

    def run(last):
        process = spawn("logs", "m", "-f")
        words.eventually(lambda: len(server.calls("GET", LOGS.format(last))) > 1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 130, err
        return out, err

    return run


def test_following_another_replica_begins_at_the_beginning_of_its_log(server, words, follow):
    """Without `--replica` it is the first that there is; after a scale-down or a drain that is another."""
    there, other = {"worker": "w1"}, {"worker": "w2", "replica_id": "m-1"}
    server.script["GET", LOGS.format(-65536)] = part("of the first\n", **there)
    server.script["GET", LOGS.format(13)] = part("middle\n", 13, **other)
    server.script["GET", LOGS.format(0)] = part("of the other\nmiddle\n", **other)
    server.script["GET", LOGS.format(20)] = part("", 20, **other)
    out, err = follow(20)
    assert out == "of the first\nof the other\nmiddle\n"
    assert err.startswith("Now the log of m-1 (worker w2), from its beginning\n")


def test_following_goes_on_over_a_restart_of_the_supervisor(server, words, follow):
    restarting = (503, words.error("the supervisor doesn't answer", "unavailable"))
    server.script["GET", LOGS.format(-65536)] = part("one\n")
    server.script["GET", LOGS.format(4)] = words.Turns([restarting, restarting, part("two\n", 4)])
    server.script["GET", LOGS.format(8)] = part("", 8)
    assert follow(8)[0] == "one\ntwo\n"


@pytest.mark.parametrize("heard", [True, False])
def test_a_log_that_cannot_be_read_is_told(xi, server, words, monkeypatch, heard):
    """After a while where it could be read before, else at once."""
    monkeypatch.setattr(module, "POLL", 0.0)
    monkeypatch.setattr(patience, "PATIENCE", 0.0 if heard else 60.0)
    gone = (503, words.error("m-0 has no log to read now", "unavailable"))
    server.script["GET", LOGS.format(-65536)] = part("one\n") if heard else gone
    server.script["GET", LOGS.format(4)] = gone
    result = xi("logs", "m", "-f")
    assert (result.exit_code, result.stderr) == (1, "Error: m-0 has no log to read now\n")
    assert result.stdout == "one\n" * heard
