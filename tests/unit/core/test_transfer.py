"""How far a download is, as people say it."""

from __future__ import annotations

import pytest

from xi_core.api.transfer import Transfer


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (119.4, "119 s"), (120.0, "2 min"), (3599.0, "60 min"), (7199.0, "120 min"), (7200.0, "2 h"), (1e6, "278 h")],
)
def test_words_tell_the_time_that_is_left(seconds: float, words: str) -> None:
    told = Transfer(done=1_200_000_000, total=4_000_000_000, rate=20e6, eta=seconds).words()
    assert told == f"1.2 GB of 4.0 GB, 20.0 MB/s, {words} left"


def test_words_without_a_rate_tell_no_time() -> None:
    assert Transfer(done=0, total=1000).words() == "0 B of 1 kB, 0 B/s"
