"""Formats as patterns: which texts they take, and where in a schema they stand."""

from __future__ import annotations

import datetime
import re

import pytest

from xi_core.engine.formats import PATTERNS, spelled


def takes(name: str, text: str) -> bool:
    return re.search(PATTERNS[name], text) is not None


def test_dates_are_those_of_the_calendar() -> None:
    for year in (1000, 1900, 2000, 2023, 2024, 2100, 2400, 9999, *range(1003, 9999, 97)):
        for month in range(14):
            for day in range(33):
                text = f"{year}-{month:02}-{day:02}"
                try:
                    datetime.date.fromisoformat(text)
                except ValueError:
                    assert not takes("date", text), text
                else:
                    assert takes("date", text), text


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("date", ["2024-02-29", "2000-02-29"], ["1900-02-29", "0000-01-01", "24-01-01", "2024-1-1", " 2024-01-01", "2024-01-01T"]),
        ("time", ["00:00:00Z", "23:59:59.123456+23:59"], ["24:00:00Z", "23:59:60Z", "12:00:00", "12:00Z", "12:00:00+24:00", "12:00:00z"]),
        ("date-time", ["2023-12-31T23:59:59Z"], ["2023-02-29T00:00:00Z", "2023-12-31 23:59:59Z", "2023-12-31"]),
        ("uuid", ["01234567-89ab-CDEF-0123-456789abcdef"], ["0123456789abcdef0123456789abcdef", "g1234567-89ab-cdef-0123-456789abcdef"]),
    ],
)
def test_formats(name: str, good: list[str], bad: list[str]) -> None:
    assert all(takes(name, text) for text in good)
    assert not any(takes(name, text) for text in bad)


def test_formats_are_spelled_wherever_a_schema_may_stand() -> None:
    date, spelt = {"type": "string", "format": "date"}, {"type": "string", "pattern": PATTERNS["date"]}

    def schema(part: object) -> dict[str, object]:
        return {
            "properties": {"format": part, "b": {"anyOf": [{"type": "null"}, part]}, "c": {"prefixItems": [part], "items": False}},
            "additionalProperties": part,
            "$defs": {"d": {"items": {"oneOf": [part]}}},
            "enum": [date],
        }

    assert spelled(schema(date)) == schema(spelt)
