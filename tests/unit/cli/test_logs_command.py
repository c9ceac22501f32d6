"""`xi logs`: the end of a replica's log, and the log before it."""

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
