"""A request's `Grammar` in GBNF, the grammars of llama.cpp. Pure; called by `translate.py`.

llama.cpp converts JSON schemas itself, but drops keywords in silence, and where it was built with llguidance a schema that this
can't read leaves the answer free. So xi converts: what is not written here is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from xi_core.engine.formats import PATTERNS
from xi_core.engine.grammar import Grammar
from xi_core.errors import InvalidRequest, UnsupportedField
from xi_plugins.engines.llama_cpp.disjoint import are_disjoint
from xi_plugins.engines.llama_cpp.numbers import FAR, decimals, integers
from xi_plugins.engines.llama_cpp.regex import literal, pattern_to_gbnf, regex_to_gbnf

_ROOTS = ("$defs", "definitions")
_PRIMITIVES = r"""
ws ::= | " " | "\n" [ \t]{0,20}
value ::= object | array | string | number | boolean | null
object ::= "{" ws (member ("," ws member)* ws)? "}"
member ::= string ":" ws value
array ::= "[" ws (value ("," ws value)* ws)? "]"
string ::= "\"" char* "\""
char ::= [\x20-\x21\x23-\x5B\x5D-\x7E\u0080-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\/bfnrt] | "u" (hex hex hex hex | [dD] [0-7] hex2))
hex ::= [0-9a-cA-CeEfF]
hex2 ::= [0-9a-fA-F]{2}
number ::= integer ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
boolean ::= "true" | "false"
null ::= "null"
"""


def to_gbnf(grammar: Grammar) -> str:
    """The grammar's text for llama.cpp's field `grammar`. Raises `InvalidRequest` and `UnsupportedField`, naming what can't be done."""
    if grammar.kind == "gbnf":
        return grammar.text
    if grammar.kind == "choice":
        return "root ::= " + " | ".join(map(literal, msgspec.json.decode(grammar.text, type=list[str])))
    if grammar.kind == "regex":
        return f"root ::= {regex_to_gbnf(grammar.text, grammar.param)}"
    return _Rules(msgspec.json.decode(grammar.text), grammar.param).text()


class _Rules:
    """The rules of one schema, in xi's small form (see `xi_core.serving.schema`)."""

    def __init__(self, schema: dict[str, Any], param: str) -> None:
        self._schema = schema
        self._param = param
        self._rules: list[str] = []
        self._count = 0
        self._formats: dict[str, str] = {}
        self._references = {"#": "root"}
        for section in _ROOTS:
            for name in schema.get(section, {}):
                self._references[f"#/{section}/{name}"] = f"d{len(self._references)}"

    def text(self) -> str:
        root = {name: value for name, value in self._schema.items() if name not in _ROOTS}
        self._rules.append(f"root ::= {self._expression(root)}")
        for section in _ROOTS:
            for name, definition in self._schema.get(section, {}).items():
                self._rules.append(f"{self._references[f'#/{section}/{name}']} ::= {self._expression(definition)}")
        return "\n".join(self._rules) + _PRIMITIVES

    def _rule(self, expression: str) -> str:
        self._count += 1
        name = f"r{self._count}"
        self._rules.append(f"{name} ::= {expression}")
        return name

    def _refuse(self, what: str) -> UnsupportedField:
        return UnsupportedField(f"{self._param}: engine llama.cpp does not support {what}", param=self._param)

    def _expression(self, schema: dict[str, Any]) -> str:
        if "$ref" in schema:
            return self._references[schema["$ref"]]
        if "oneOf" in schema and not are_disjoint(schema["oneOf"], self._schema):
            raise self._refuse("'oneOf' of schemas that may have a value in common; write 'anyOf'")
        if "anyOf" in schema or "oneOf" in schema:
            return " | ".join(self._rule(self._expression(part)) for part in schema.get("anyOf") or schema["oneOf"])
        if "enum" in schema:
            return " | ".join(literal(msgspec.json.encode(value).decode()) for value in schema["enum"])
        kind = schema.get("type", "value")
        if kind == "object":
            return self._object(schema)
        if kind == "array":
            return self._array(schema)
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        return str(kind)

    def _object(self, schema: dict[str, Any]) -> str:
        if "properties" not in schema:
            others = schema.get("additionalProperties")
            if not others:
                return "object"
            member = self._rule(f'string ":" ws {self._rule(self._expression(others))}')
            return f'"{{" ws ({member} ("," ws {member})* ws)? "}}"'
        required = set(schema["required"])
        # From the last property to the first: what may follow when a member stands already (`after`), and when none does (`start`).
        after = start = '""'
        for name, inner in reversed(schema["properties"].items()):
            key = literal(msgspec.json.encode(name).decode())
            member = self._rule(f'{key} ":" ws {self._rule(self._expression(inner))}')
            if name in required:
                start, after = self._rule(f"{member} {after}"), self._rule(f'"," ws {member} {after}')
            else:
                start, after = self._rule(f"{member} {after} | {start}"), self._rule(f'"," ws {member} {after} | {after}')
        return f'"{{" ws {start} ws "}}"' if schema["properties"] else '"{" ws "}"'

    def _array(self, schema: dict[str, Any]) -> str:
        if "prefixItems" in schema:
            items = ' "," ws '.join(self._rule(self._expression(part)) for part in schema["prefixItems"])
            return f'"[" ws {items} ws "]"'
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" ws "]"'
        item = self._rule(self._expression(schema["items"]))
        more = self._rule(f'"," ws {item}')
        some = f"{item} ws" if most == 1 else f"{item} {more}{{{max(0, least - 1)},{'' if most is None else most - 1}}} ws"
        return f'"[" ws {some} "]"' if least else f'"[" ws ({some})? "]"'

    def _string(self, schema: dict[str, Any]) -> str:
        if "pattern" in schema:
            if len(schema) > 2:
                raise self._refuse("'minLength' and 'maxLength' beside 'pattern'; let the pattern say it")
            return pattern_to_gbnf(schema["pattern"], f"{self._param}: pattern", self._param)
        if "format" in schema:
            return self._format(schema["format"])
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if not least and most is None:
            return "string"
        if most == 0:
            return '"\\"\\""'
        return f'"\\"" char{{{least},{"" if most is None else most}}} "\\""'

    def _format(self, name: str) -> str:
        """The rule of a format, which is written when it is first asked for."""
        if name not in self._formats:
            self._formats[name] = self._rule(pattern_to_gbnf(PATTERNS[name], f"{self._param}: format", self._param))
        return self._formats[name]

    def _number(self, schema: dict[str, Any], kind: str) -> str:
        if len(schema) == 1:
            return kind
        if kind == "number":
            return self._decimal(schema)
        least = max(schema.get("minimum", -FAR), schema.get("exclusiveMinimum", -FAR - 1) + 1)
        most = min(schema.get("maximum", FAR), schema.get("exclusiveMaximum", FAR + 1) - 1)
        if least > most:
            raise InvalidRequest(f"{self._param}: no integer is from {least} to {most}", param=self._param)
        return integers(least, most)

    def _decimal(self, schema: dict[str, Any]) -> str:
        lows = [(schema[name], name == "exclusiveMinimum") for name in ("minimum", "exclusiveMinimum") if name in schema]
        highs = [(schema[name], name != "exclusiveMaximum") for name in ("maximum", "exclusiveMaximum") if name in schema]
        least, above = max(lows, default=(None, False))
        most, within = min(highs, default=(None, True))
        found = decimals(least, most, above=above, below=not within)
        if not found:
            raise InvalidRequest(f"{self._param}: no number is within the bounds {least} and {most}", param=self._param)
        return found
