"""Grammars compiled over a tokenizer of bytes, and the threads that compile them."""

import asyncio
import contextlib
import sys
import threading

import pytest

from xi_core.engine.grammar import Grammar, GrammarCompiler
from xi_core.errors import EngineError, InvalidRequest, XiError
from xi_core.serving.compiling import Compilations
from xi_core.testing.fakes import END, ByteTokenizer

AMBIGUOUS = 'root ::= some "z"\nsome ::= [a-y] | some some | some some some | some some some some'


def compiler() -> GrammarCompiler:
    pytest.importorskip("llguidance")
    return GrammarCompiler(ByteTokenizer(), [END])


def allowed(mask: bytes) -> set[int]:
    return {token for token in range(END + 1) if mask[token // 8] >> token % 8 & 1}


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        (Grammar(kind="choice", text='["yes","yes, \\"é\\"\\n","no"]'), ["yes", 'yes, "é"\n', "no"], ["yesno", "y", ""]),
        (Grammar(kind="regex", text=r"\d+(,\d+)*/?"), ["1", "12,3/"], ["", ",", "١", "1,"]),
        (Grammar(kind="gbnf", text='root ::= "a" root "b" | "c"'), ["c", "acb", "aacbb"], ["ac", "a", "cb"]),
        (Grammar(kind="gbnf", text=r'root ::= [\u0080-\u00FF\x41] "\xE9\x22\x5C" [\u00e9\\]'), ['é' + 'é"\\' + '\\', 'Aé"\\é'], ["Bé", 'Aé"u']),
        (Grammar(kind="json_schema", text='{"type":"array","items":{"enum":[1,null]}}'), ["[]", "[1, null]", "[\n  1\n]"], ["[2]", "[1", "[" + " " * 9 + "]"]),
    ],
)  # fmt: skip
def test_only_what_is_in_the_grammar(grammar: Grammar, good: list[str], bad: list[str]) -> None:
    grammars = compiler()
    for text in good + bad:
        matcher, fits = grammars.matcher(grammar), True
        for token in text.encode():
            fits = fits and token in allowed(matcher.allowed())
            if fits:
                matcher.accept(token)
        assert (fits and END in allowed(matcher.allowed())) == (text in good), text


def test_the_end_is_all_that_is_left() -> None:
    matcher = compiler().matcher(Grammar(kind="choice", text='["a"]'))
    matcher.accept(ord("a"))
    assert allowed(matcher.allowed()) == {END}
    matcher.accept(END)


def test_matchers_of_one_grammar_are_apart() -> None:
    grammars, grammar = compiler(), Grammar(kind="choice", text='["ab"]')
    first, second = grammars.matcher(grammar), grammars.matcher(grammar)
    first.accept(ord("a"))
    assert (allowed(first.allowed()), allowed(second.allowed())) == ({ord("b")}, {ord("a")})


def test_a_step_that_is_not_allowed_is_told() -> None:
    matcher = compiler().matcher(Grammar(kind="choice", text='["ab"]', param="p"))
    matcher.accept(ord("x"))
    with pytest.raises(InvalidRequest, match="p: "):
        matcher.allowed()


@pytest.mark.parametrize("timed", [True, False])
def test_an_answer_that_can_be_read_in_ever_more_ways_ends(monkeypatch: pytest.MonkeyPatch, timed: bool) -> None:
    """Each of its tokens takes longer than the one before, and the whole batch waits for it."""
    pytest.importorskip("llguidance")
    monkeypatch.setattr("xi_core.engine.grammar.WORK", 0.02)
    monkeypatch.setattr("xi_core.engine.grammar.WORK_OF_TOKEN", 0.0)
    matcher = GrammarCompiler(ByteTokenizer(), [END], timed=timed).matcher(Grammar(kind="gbnf", text=AMBIGUOUS, param="p"))
    made = 0
    with pytest.raises(InvalidRequest, match=r"p: .*less ambiguous") if timed else contextlib.nullcontext():
        while made < 60:
            assert ord("a") in allowed(matcher.allowed())
            matcher.accept(ord("a"))
            made += 1
    assert 5 < made < 60 if timed else made == 60


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(kind="regex", text="(a", param="p"),
        Grammar(kind="regex", text="(?=a)b", param="p"),
        Grammar(kind="gbnf", text="root ::= nope", param="p"),
        Grammar(kind="gbnf", text="root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, param="p"),
        Grammar(kind="json_schema", text='{"type":"integer","minimum":5,"maximum":3}', param="p"),
    ],
)
def test_what_is_no_grammar(grammar: Grammar) -> None:
    with pytest.raises(InvalidRequest, match="p: ") as caught:
        compiler().prepare(grammar)
    assert caught.value.param == "p"


def test_a_model_without_an_end() -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(EngineError, match="no end token"):
        GrammarCompiler(ByteTokenizer(), []).prepare(Grammar(kind="regex", text="a"))


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(EngineError, match="pip install"):
        GrammarCompiler(ByteTokenizer(), [END]).prepare(Grammar(kind="regex", text="a"))


async def outcome(compilations: Compilations) -> XiError | None:
    done: asyncio.Future[XiError | None] = asyncio.get_running_loop().create_future()
    compilations.start(Grammar(kind="regex", text="a", param="p"), done.set_result)
    return await asyncio.wait_for(done, 10)


async def test_compilations_say_what_went_wrong() -> None:
    def refuse(grammar: Grammar) -> None:
        raise InvalidRequest("wrong", param=grammar.param)

    def break_(grammar: Grammar) -> None:
        raise ZeroDivisionError

    assert await outcome(Compilations(lambda grammar: None)) is None
    refused, broken = await outcome(Compilations(refuse)), await outcome(Compilations(break_))
    assert isinstance(refused, InvalidRequest)
    assert isinstance(broken, EngineError)


async def test_a_grammar_that_takes_too_long() -> None:
    release = threading.Event()
    compilations = Compilations(lambda grammar: bool(release.wait(10)) and None, longest=0.05)
    try:
        problem = await outcome(compilations)
        assert isinstance(problem, InvalidRequest)
        assert "0.05 s" in problem.message
    finally:
        release.set()
        compilations.close()
