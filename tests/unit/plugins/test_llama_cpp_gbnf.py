"""Grammars for llama.cpp: what is written, and what is refused. That llama.cpp keeps to them is tested with the engine."""

import re

import pytest

from xi_core.engine.grammar import Grammar
from xi_core.errors import InvalidRequest, UnsupportedField
from xi_plugins.engines.llama_cpp.gbnf import integers, to_gbnf
from xi_plugins.engines.llama_cpp.regex import all_but, regex_to_gbnf

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
        ('{"oneOf":[{},{}]}', "oneOf"), ('{"type":"string","pattern":"a"}', "pattern"), ('{"type":"number","minimum":1}', "minimum"),
        ('{"type":"integer","minimum":5,"exclusiveMaximum":5}', "no integer"),
    ],
)  # fmt: skip
def test_schemas_that_are_not_supported(schema: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        to_gbnf(Grammar(kind="json_schema", text=schema, param="response_format"))
    assert caught.value.param == "response_format"
    assert isinstance(caught.value, UnsupportedField) == (words != "no integer")


def test_white_space_is_bounded() -> None:
    text = to_gbnf(Grammar(kind="json_schema", text='{"type":"object"}'))
    assert r'ws ::= | " " | "\n" [ \t]{0,20}' in text
    assert "root ::= object" in text
