"""Requests to the engine `llama.cpp` that are aborted, and those that are open when it is closed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from xi_core.errors import EngineError

pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.engine("llama.cpp"), pytest.mark.timeout(60)]

from llama_cpp_loaded import WAIT, Loaded  # noqa: E402


def test_abort_while_it_answers(loaded: Loaded) -> None:
    id = loaded.start("Once", max_tokens=1000, ignore_eos=True)
    loaded.sink.wait_events(id, 3)
    loaded.engine.abort(id)
    began = time.monotonic()
    loaded.sink.wait(id)
    assert time.monotonic() - began < 1.0
    assert loaded.sink.ends[id] == "done"
    assert loaded.engine.stats().running == 0


def test_abort_at_once(loaded: Loaded) -> None:
    ids = [loaded.start([5] * 1000, max_tokens=20) for _ in range(32)]
    for id in ids:
        loaded.engine.abort(id)
    loaded.sink.wait(*ids)
    assert {loaded.sink.ends[id] for id in ids} == {"done"}
    loaded.engine.abort(12345678)


def test_steps_move_and_aborts_take_effect_within_a_prompt() -> None:
    loaded = Loaded(slots=1, batch_size=32, ubatch_size=32)
    try:
        before = loaded.engine.stats().steps
        answer = loaded.ask([5] * 1000, max_tokens=1)
        assert answer.end == "done"
        assert loaded.engine.stats().steps - before >= 1000 // 32, "a step for each batch of the prompt"
        whole = loaded.engine.stats()
        id = loaded.start([6] * 1000, max_tokens=1)
        deadline = time.monotonic() + WAIT
        while loaded.engine.stats().steps < whole.steps + 3 and time.monotonic() < deadline:
            time.sleep(0)
        loaded.engine.abort(id)
        loaded.sink.wait(id)
        assert loaded.sink.ends[id] == "done"
    finally:
        loaded.engine.close(5.0)


def test_close_ends_requests_and_threads() -> None:
    before = len(os.listdir("/proc/self/task")) if Path("/proc/self/task").is_dir() else None
    loaded = Loaded(slots=4)
    ids = [loaded.start("Once", max_tokens=1000, ignore_eos=True) for _ in range(4)]
    loaded.sink.wait_events(ids[0], 1)
    loaded.engine.close(10.0)
    loaded.sink.wait(*ids)
    with pytest.raises(EngineError, match="closed"):
        loaded.engine.check()
    late = loaded.start("Once", max_tokens=1)
    assert loaded.sink.ends[late][0] == 503
    if before is not None:
        assert len(os.listdir("/proc/self/task")) <= before, "llama.cpp's own threads are gone"
