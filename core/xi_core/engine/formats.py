"""The formats of strings that a JSON schema may name, as patterns, so that engines take the same values whatever their libraries do.

Libraries read them more widely: llguidance takes the 29th of February in any year, llama.cpp a 31st of April. Dates and times are those of
RFC 3339 (https://www.rfc-editor.org/rfc/rfc3339#section-5.6) in the years 1000 to 9999, without leap seconds, to the microsecond.
"""

from __future__ import annotations

from typing import Any

_LEAP = "([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DAY_OF_ANY_YEAR = "(02-(0[1-9]|1[0-9]|2[0-8])|(04|06|09|11)-(0[1-9]|[12][0-9]|30)|(01|03|05|07|08|10|12)-(0[1-9]|[12][0-9]|3[01]))"
_DATE = f"([1-9][0-9]{{3}}-{_DAY_OF_ANY_YEAR}|{_LEAP}-02-29)"
_HOUR = "([01][0-9]|2[0-3])"
_TIME = rf"{_HOUR}:[0-5][0-9]:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[-+]{_HOUR}:[0-5][0-9])"
_HEX = "[0-9a-fA-F]"

PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "uuid": f"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}$",
}
"""By name; each matches the whole text. Written in what all dialects of regular expressions have in common."""

OF_NAMES = ("properties", "$defs", "definitions")
"""Keywords whose values are schemas by name."""
OF_SCHEMAS = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf")
"""Keywords whose values are schemas, or lists of them."""


def spelled(schema: Any) -> Any:
    """A schema in the small form of `xi_core.serving.schema`, or a list of such, with patterns in the place of formats."""
    if isinstance(schema, list):
        return [spelled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "format" in schema:
        return {"type": "string", "pattern": PATTERNS[schema["format"]]}
    named = {of: {name: spelled(part) for name, part in schema[of].items()} for of in OF_NAMES if of in schema}
    return schema | named | {of: spelled(schema[of]) for of in OF_SCHEMAS if of in schema}
