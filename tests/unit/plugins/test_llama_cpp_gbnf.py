"""Grammars for llama.cpp: what is written, and what is refused. That llama.cpp keeps to them is tested with the engine."""

import json
import random
import re
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xi_core.engine.grammar import Grammar, GrammarCompiler
from xi_core.errors import InvalidRequest, UnsupportedField
from xi_core.serving.schema import normalise
from xi_core.testing.fakes import END, ByteTokenizer
from xi_core.testing.schema_check import fits
from xi_plugins.engines.llama_cpp.gbnf import to_gbnf
from xi_plugins.engines.llama_cpp.numbers import decimals, integers
from xi_plugins.engines.llama_cpp.regex import all_but, pattern_to_gbnf, regex_to_gbnf

SPECIAL = re.compile(r"([.+*?(){}|$^])")


def from_gbnf(expression: str) -> str:
    """An expression of literals, classes, groups and repetitions as Python's regular expression."""
    parts = re.findall(r'("(?:[^"\\]|\\.)*")|(\[(?:[^\]\\]|\\.)*\])|(\{[^}]*\}|[()|*+?])', expression)
    return "".join("(?:" + SPECIAL.sub(r"[\1]", text[1:-1]) + ")" if text else group or sign for text, group, sign in parts).replace(
        "[^]", r"\^"
    )


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("abc", ["abc"], ["ab", "abcd"]),
        ("^a|b$", ["a", "b"], ["ab", ""]),
        (r"\d{2,3}-\w+?", ["12-a", "123-_Z9"], ["1-a", "12-", "12-é"]),
        (r"[^\da-c\]]x*", ["d", "é", "-xx"], ["1", "a", "]", ""]),
        (r"(?:a|(b|c)){2}", ["ab", "cc"], ["a", "abc"]),
        (r".\.\\\"", ['x.\\"'], ['xx\\"', '\n.\\"']),
        (r"[a\-z.]+", ["-a.z"], ["b"]),
        (r"\x41\u00e9\t", ["Aé\t"], ["A"]),
        (r"\S\s\W", ["a !"], ["  !", "a a"]),
        ("a?(b*)c{3}", ["ccc", "abbccc"], ["cc"]),
        ("[]a]|x{0}", ["]", "a", ""], ["x"]),
    ],
)
def test_regular_expressions(pattern: str, good: list[str], bad: list[str]) -> None:
    found = re.compile(from_gbnf(regex_to_gbnf(pattern, "p")))
    for text in good + bad:
        assert bool(found.fullmatch(text)) == (text in good), (text, found.pattern)


@pytest.mark.parametrize(
    "pattern",
    ["(a", "a)", "*a", "a**", "(?=a)b", "(?i)a", "(?P<n>a)", r"\bx", r"\1", r"\p{L}", "a^b", "a$b", "[a", "[z-a]", "a{3,2}", "a{2001}", "a{", "{2}",
     "[a[b]]", "[a&&b]", "\\", r"\x4", "(" * 65 + "a" + ")" * 65, "(a?)*", "(a?){2000}(a?){2000}", "a?" * 400, "((a{0,1000}){0,1000}){0,1000}", r"[\s\S-]|[^\s\S]", r"\ud800"],
)  # fmt: skip
def test_what_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        regex_to_gbnf(pattern, "structured_outputs.regex")
    assert caught.value.param == "structured_outputs.regex"


@pytest.mark.parametrize(
    "pattern",
    [
        "([a-z]*[a-z]*){9}!",
        "(a?){40}a{40}",
        "(a+)+b",
        "(a|a)*b",
        "(a|aa)*b",
        r"(\w+\s*)+",
        "(.*a){9}",
        "((a{1,50}){1,50}){1,50}",
        "((a|b)|(a|c))*x",
    ],
)
def test_texts_with_too_many_readings_are_refused(pattern: str) -> None:
    """llama.cpp follows each of them, and serves nobody meanwhile."""
    for made in (regex_to_gbnf, lambda pattern, param: pattern_to_gbnf(pattern, param, param)):
        with pytest.raises(InvalidRequest, match=r"too many (ways|parts)") as caught:
            made(pattern, "p")
        assert caught.value.param == "p"


@pytest.mark.parametrize(
    "pattern",
    [
        r"[a-z]+@[a-z]+\.[a-z]{2,}", r"(\w+ )*\w+", ".*foo.*bar.*", r"-?\d*\.?\d*([eE][-+]?\d+)?", ".{0,2000}", "([a-z]*[a-z]*){2}!",
        r"https?://[\w.-]+(:\d+)?(/[\w./-]*)?(\?[\w=&]*)?", "(" + "|".join(f"word{i}" for i in range(900)) + ")( [a-z]+)*", "a" * 20_000,
        "((" + "|".join(f"word{i}" for i in range(300)) + ") )*", "(ab|a)(bc|c)?", "(|a)(b|)c", "x{0}(y{3}){2,}z?",
    ],
)  # fmt: skip
def test_what_can_be_read_in_few_ways_is_taken(pattern: str) -> None:
    assert regex_to_gbnf(pattern, "p")
    assert pattern_to_gbnf(pattern, "p", "p")


def test_characters_outside_ranges() -> None:
    assert all_but([(0, 0x10FFFF)]) == []
    assert all_but([(10, 10)]) == [(0, 9), (11, 0xD7FF), (0xE000, 0x10FFFF)]
    assert all_but([(97, 99), (98, 120), (0xD000, 0xE001)]) == [(0, 96), (121, 0xCFFF), (0xE002, 0x10FFFF)]


@pytest.mark.parametrize(
    ("least", "most"), [(0, 0), (0, 9), (3, 7), (0, 120), (7, 1234), (-5, 5), (-120, -7), (99, 101), (1000, 1000), (-3, 0)]
)
def test_integers(least: int, most: int) -> None:
    found = re.compile(from_gbnf(integers(least, most)))
    for number in range(-1300, 1301):
        assert bool(found.fullmatch(str(number))) == (least <= number <= most), number
    assert not found.fullmatch("-0")
    assert not found.fullmatch("007")


def test_choices_are_escaped() -> None:
    assert to_gbnf(Grammar(kind="choice", text='["a","\\"\\\\\\n","é😀"]')) == r'root ::= "a" | "\x22\x5C\x0A" | "\xE9\U0001F600"'


def test_grammars_pass() -> None:
    assert to_gbnf(Grammar(kind="gbnf", text='root ::= "a"')) == 'root ::= "a"'


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ('{"oneOf":[{},{}]}', "oneOf"), ('{"oneOf":[{"type":"integer"},{"type":"number"}]}', "oneOf"), ('{"oneOf":[{"enum":[1,2]},{"enum":[2]}]}', "oneOf"),
        ('{"type":"string","pattern":"a","maxLength":3}', "beside 'pattern'"), ('{"type":"integer","minimum":5,"exclusiveMaximum":5}', "no integer"),
        ('{"type":"number","minimum":5,"exclusiveMaximum":5}', "no number"), ('{"type":"string","pattern":"^a|b"}', "needs a group"),
        ('{"type":"string","pattern":"(?=a)b"}', "look-around"),
    ],
)  # fmt: skip
def test_schemas_that_are_not_supported(schema: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        to_gbnf(Grammar(kind="json_schema", text=schema, param="response_format"))
    assert caught.value.param == "response_format"
    assert isinstance(caught.value, UnsupportedField) == ("no " not in words and words not in ("needs a group", "look-around"))


def test_a_definition_that_nothing_refers_to_may_have_any_name() -> None:
    schema = normalise({"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"enum": [1]}, "b/c": {"enum": [2]}}}, "p")
    assert 'd1 ::= "1"' in to_gbnf(Grammar(kind="json_schema", text=json.dumps(schema)))


def test_white_space_is_bounded() -> None:
    text = to_gbnf(Grammar(kind="json_schema", text='{"type":"object"}'))
    assert r'ws ::= | " " | "\n" [ \t]{0,20}' in text
    assert "root ::= object" in text


BOUNDS = [
    (0.5, 2.0), (0.0, 1.0), (-1.5, 0.25), (0.1, 0.9), (0.25, 0.251), (-0.75, -0.5), (3.0, 3.0), (None, -2.5), (99.99, 101.0), (-3.0, None), (0.0, 0.05),
]  # fmt: skip


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize("below", [False, True])
def test_decimals(bounds: tuple[float | None, float | None], above: bool, below: bool) -> None:
    least, most = bounds
    text = decimals(least, most, above=above and least is not None, below=below and most is not None)
    if not text:
        assert least == most
        return
    found = re.compile(from_gbnf(text))
    near = {
        round(bound + step, 6) for bound in bounds if bound is not None for step in (0, 1e-6, -1e-6, 0.001, -0.001, 0.1, -0.1, 1, -1, 9, -9)
    }
    for number in sorted(near | {0.0, 0.5, -0.5, 0.2505, 100.0, -100.25}):
        for written in {str(number), f"{number:.7f}", *([str(int(number))] if number.is_integer() else [])} - {"-0.0", "-0.0000000"}:
            if "e" in written:
                continue
            value = float(written)
            wanted = (least is None or value > least or (value == least and not above)) and (
                most is None or value < most or (value == most and not below)
            )
            assert bool(found.fullmatch(written)) == wanted, (written, text)
    for wrong in ("-0", "007", "1.", ".5", "--1", "-0.0"):
        assert not found.fullmatch(wrong)


# ---- whatever the schema is, what the grammar lets through is valid ---------------------------------

NAMES = st.sampled_from(["a", "b", 'q"\\', "é"])
PATTERNS = st.sampled_from(["^[A-Z]{2}-\\d+$", "a", '^["\\\\]$', "^(x|yz)*$", "\\.js$", "^[^a-z\\s]{1,3}$", "\\w\\W"])
LEAVES = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.sampled_from(["date", "time", "date-time", "uuid"]).map(lambda name: {"type": "string", "format": name}),
    PATTERNS.map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.tuples(st.integers(0, 3), st.integers(0, 4)).map(lambda ends: {"type": "string", "minLength": ends[0], "maxLength": sum(ends)}),
    st.tuples(st.integers(-1200, 1200), st.integers(0, 1500)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": sum(ends)}
    ),
    st.tuples(st.floats(-99, 99, allow_nan=False), st.floats(0.001, 200)).map(
        lambda ends: {"type": "number", "exclusiveMinimum": ends[0], "maximum": sum(ends)}
    ),
    st.lists(st.sampled_from([1, "x", None, True, {"k": [0.5]}, "\n"]), min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.just({"const": "only"}),
    st.just({"$ref": "#/$defs/tree"}),
)
TREE = {"type": "object", "properties": {"left": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}}, "required": ["left"], "additionalProperties": False}  # fmt: skip


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    made = st.tuples(st.dictionaries(NAMES, inner, max_size=3), st.sets(NAMES))
    return made.map(
        lambda pair: {"type": "object", "properties": pair[0], "required": sorted(pair[1] & set(pair[0])), "additionalProperties": False}
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        _objects(inner),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda of: {"type": "array", "items": of[0], "minItems": of[1], "maxItems": of[1] + of[2]}
        ),
        st.lists(inner, min_size=1, max_size=2).map(
            lambda parts: {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(inner, min_size=2, max_size=2).map(lambda parts: {"oneOf": parts}),
    ),
    max_leaves=4,
)


@cache
def compiler() -> GrammarCompiler:
    return GrammarCompiler(ByteTokenizer(), [END])


def walk(grammar: Grammar, chance: random.Random) -> str | None:
    """A random text of the grammar; None where it got too long."""
    matcher, found = compiler().matcher(grammar), b""
    for _ in range(1500):
        mask = matcher.allowed()
        allowed = [token for token in range(END + 1) if mask[token // 8] >> token % 8 & 1]
        likely = [token for token in allowed if token == END or chr(token) in '",]}:>)'] if chance.random() < 0.7 else []
        token = chance.choice(likely or allowed)
        if token == END:
            return found.decode()
        matcher.accept(token)
        found += bytes([token])
    return None


@settings(max_examples=40, deadline=None)
@given(schema=SCHEMAS, seed=st.integers(0, 10**6))
def test_what_the_grammar_lets_through_is_valid(schema: dict[str, Any], seed: int) -> None:
    pytest.importorskip("llguidance")
    whole = {**schema, "$defs": {"tree": TREE}}
    try:
        gbnf = to_gbnf(Grammar(kind="json_schema", text=json.dumps(normalise(whole, "p"))))
    except UnsupportedField:
        assert "oneOf" in str(schema), schema
        return
    for step in range(3):
        text = walk(Grammar(kind="gbnf", text=gbnf), random.Random(seed + step))
        assert text is None or fits(json.loads(text), whole), text
