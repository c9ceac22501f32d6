"""What the gateway counts of models that are gone is forgotten after a while."""

from __future__ import annotations

from xi_server.metrics import KEPT, SWEEP, Metrics


def counted(metrics: Metrics, uid: str) -> None:
    metrics.requests.add("/v1/completions", uid, "200")
    metrics.tokens.add(uid, by=5)
    metrics.ttft.observe(0.1, uid)
    metrics.duration.observe(0.2, "/v1/completions", uid)


def test_a_model_that_is_gone_is_shown_for_a_while_and_then_forgotten() -> None:
    metrics = Metrics()
    for uid in ("stays", "goes", ""):
        counted(metrics, uid)
    metrics.sweep({"stays"}, 100.0)
    metrics.sweep({"stays"}, 100.0 + KEPT - 1)
    assert 'model="goes"' in metrics.render()
    metrics.sweep({"stays"}, 100.0 + KEPT + SWEEP)
    assert 'model="goes"' not in metrics.render()
    assert set(metrics.tokens.values) == {("stays",), ("",)}
    assert 'xi_requests_total{route="/v1/completions",model="stays",status="200"} 1' in metrics.render()
    assert 'xi_requests_total{route="/v1/completions",model="",status="200"} 1' in metrics.render()


def test_a_model_that_comes_back_goes_on_counting() -> None:
    metrics = Metrics()
    counted(metrics, "m")
    metrics.sweep(set(), 0.0)
    metrics.sweep({"m"}, KEPT - 1)
    counted(metrics, "m")
    metrics.sweep(set(), KEPT + SWEEP)
    assert metrics.tokens.values[("m",)] == 10
    metrics.sweep(set(), 2 * KEPT + SWEEP)
    assert ("m",) not in metrics.tokens.values


def test_names_that_come_and_go_take_no_memory() -> None:
    metrics, now = Metrics(), 0.0
    for number in range(1000):
        now += SWEEP
        counted(metrics, f"m{number}")
        metrics.sweep({f"m{number}"}, now)
    assert len(metrics.tokens.values) <= KEPT / SWEEP + 2
