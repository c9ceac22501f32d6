import itertools

from hypothesis import given
from hypothesis import strategies as st

from xi_core.serving.stops import StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    text = ""
    for piece in pieces:
        text += matcher.feed(piece)
        if matcher.found is not None:
            return text, matcher.found
    return text + matcher.finish(), None


def test_a_stop_over_the_border_of_two_pieces() -> None:
    assert run(["END"], ["one E", "ND two"]) == ("one ", "END")


def test_what_only_looked_like_a_stop_comes_out() -> None:
    assert run(["END"], ["one EN", "T two"]) == ("one ENT two", None)


def test_the_first_stop_in_the_text_wins() -> None:
    assert run(["zz", "b"], ["abczz"]) == ("a", "b")


def test_the_stop_that_is_whole_first_wins() -> None:
    assert run(["abc", "b"], ["abc"]) == run(["abc", "b"], ["a", "b", "c"]) == ("a", "b")
    assert run(["b", "ab"], ["ab"]) == ("", "ab"), "of two that end together, the one that began first"


def test_held_back_text_comes_at_the_end() -> None:
    assert run(["END"], ["abc EN"]) == ("abc EN", None)


def test_nothing_comes_after_a_stop() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.feed("ax") == "a"
    assert matcher.feed("b") == ""


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_cutting_the_text_anywhere_changes_nothing(text: str, stops: list[str], cuts: list[int]) -> None:
    marks = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in itertools.pairwise(marks)]
    got, found = run(stops, pieces)
    assert (got, found) == run(stops, [text])
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert (got, found) == (text, None)
    else:
        assert found is not None
        assert text.startswith(got + found)
        assert not any(stop in got for stop in stops)
