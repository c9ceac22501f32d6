"""The circuit breaker's states."""

from xi_server.breaker import FAILURES, PAUSE_FIRST, PAUSE_MOST, Breaker


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed(now)
    return breaker


def test_only_failures_in_a_row_open_it() -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed(0.0)
            assert breaker.allows
        breaker.succeeded()
    for _ in range(FAILURES):
        breaker.failed(0.0)
    assert (breaker.state, breaker.allows) == ("open", False)


def test_after_a_pause_one_request_tries_it_out() -> None:
    breaker = opened(10.0)
    breaker.tick(10.0 + PAUSE_FIRST / 2)
    assert not breaker.allows
    breaker.tick(10.0 + PAUSE_FIRST)
    assert (breaker.state, breaker.allows) == ("half_open", True)
    breaker.sent()
    assert not breaker.allows
    breaker.given_up()
    assert breaker.allows
    breaker.sent()
    breaker.succeeded()
    assert (breaker.state, breaker.allows) == ("closed", True)


def test_pauses_grow_to_a_bound_and_begin_anew_after_a_success() -> None:
    breaker, now, pause = opened(), 0.0, PAUSE_FIRST
    for _ in range(10):
        breaker.tick(now + pause - 0.01)
        assert breaker.state == "open"
        now += pause
        breaker.tick(now)
        assert breaker.state == "half_open"
        breaker.sent()
        breaker.failed(now)
        pause = min(2 * pause, PAUSE_MOST)
    breaker.succeeded()
    for _ in range(FAILURES):
        breaker.failed(now)
    breaker.tick(now + PAUSE_FIRST)
    assert breaker.state == "half_open"


def test_failures_of_requests_that_were_under_way_do_not_prolong_the_pause() -> None:
    breaker = opened(0.0)
    breaker.failed(PAUSE_FIRST / 2)
    breaker.tick(PAUSE_FIRST)
    assert breaker.state == "half_open"
