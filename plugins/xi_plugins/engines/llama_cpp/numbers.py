"""Numbers within bounds as GBNF: integers and decimals, digit by digit. Pure; called by `gbnf.py`."""

from __future__ import annotations

from decimal import Decimal

FAR = 10**16 - 1
"""Integers and the digits of numbers stay below this, so that no answer is digits for ever."""
_DIGITS = 15
"""Significant ones of a decimal: so many keep it apart from its neighbours when it is read as a float."""
_FAR = 10**_DIGITS
"""Decimals without a bound stay below this."""


def integers(least: int, most: int) -> str:
    """An expression for the integers from `least` to `most`, without leading zeros."""
    parts = []
    if least < 0:
        parts.append(f'"-" ({_naturals(max(1, -most), -least)})')
    if most >= 0:
        parts.append(_naturals(max(0, least), most))
    return " | ".join(parts)


def _naturals(least: int, most: int) -> str:
    parts = []
    for length in range(len(str(least)), len(str(most)) + 1):
        low = max(least, 10 ** (length - 1) if length > 1 else 0)
        parts.append(_digits(str(low), str(min(most, 10**length - 1))))
    return " | ".join(parts)


def _digits(low: str, high: str) -> str:
    """Texts of digits from `low` to `high`, which are equally long."""
    rest = len(low) - 1
    if low == high:
        return f'"{low}"'
    if rest and set(low[1:]) == {"0"} and set(high[1:]) == {"9"}:
        return f"[{low[0]}-{high[0]}] [0-9]{{{rest}}}"
    if low[0] == high[0]:
        return f'"{low[0]}" ({_digits(low[1:], high[1:])})'
    if rest == 0:
        return f"[{low}-{high}]"
    first, last = int(low[0]) + 1, int(high[0]) - 1
    parts = [f'"{low[0]}" ({_digits(low[1:], "9" * rest)})', f'"{high[0]}" ({_digits("0" * rest, high[1:])})']
    return " | ".join(parts + ([f"[{first}-{last}] [0-9]{{{rest}}}"] if first <= last else []))


# ---- decimals -----------------------------------------------------------------------------------


def decimals(least: float | None, most: float | None, *, above: bool = False, below: bool = False) -> str:
    """An expression for the numbers from `least` to `most`, without exponents; `above` and `below`: these themselves not. Empty: none."""
    low, high = _decimal(least, -_FAR), _decimal(most, _FAR)
    parts = []
    if low < 0:
        smallest, is_open = (-high, below) if high < 0 else (Decimal(0), True)
        negative = _positive(smallest, -low, is_open, above or least is None)
        parts += [f'"-" ({negative})'] if negative else []
    if high >= 0:
        parts.append(_positive(max(low, Decimal(0)), high, above and low >= 0, below or most is None))
    return " | ".join(part for part in parts if part)


def _decimal(value: float | None, otherwise: int) -> Decimal:
    return Decimal(otherwise if value is None else repr(value))


def _positive(low: Decimal, high: Decimal, above: bool, below: bool) -> str:
    """Numbers from `low` to `high`, neither negative. Empty where there are none."""
    (first, low_digits), (last, high_digits) = _split(low), _split(high)
    if first > last:
        return ""
    if first == last:
        return _joined(str(first), _fraction(low_digits, high_digits, above, below, _room(last)))
    parts = [_joined(str(first), _fraction(low_digits, None, above, False, _room(first)))]
    for length, longest in ((1, 7), (8, 11), (12, _DIGITS)):  # the longer the whole part, the shorter the fraction
        least, most = max(first + 1, 10 ** (length - 1)), min(last - 1, 10**longest - 1)
        if least <= most:
            parts.append(_joined(f"({integers(least, most)})", _fraction(None, None, False, False, _room(most))))
    parts.append(_joined(str(last), _fraction(None, high_digits, False, below, _room(last))))
    return " | ".join(part for part in parts if part)


def _split(value: Decimal) -> tuple[int, str]:
    """The whole part, and the digits of the fraction."""
    whole, _, fraction = format(value, "f").partition(".")
    return int(whole), fraction.rstrip("0")


def _room(whole: int) -> int:
    return max(1, _DIGITS - len(str(whole)))


def _joined(whole: str, fraction: tuple[bool, list[str]]) -> str:
    """A whole part and its fraction, which may have to be there, or not to be."""
    bare, digits = fraction
    whole = whole if whole.startswith("(") else f'"{whole}"'
    if not digits:
        return whole if bare else ""
    return f'{whole} ("." ({" | ".join(digits)})){"?" if bare else ""}'


def _fraction(low: str | None, high: str | None, above: bool, below: bool, room: int) -> tuple[bool, list[str]]:
    """Digits behind a point whose value is within bounds: whether none will do, and expressions for one and more.

    `low`, `high`: digits of the bounds, None where there is none; `above`, `below`: these themselves are outside.
    """
    if low is not None and not low.strip("0") and not above:
        low = None
    room = max(room, len(low or ""), len(high or ""))
    zero = low is None and not (high is not None and below and not high.strip("0"))
    if room == 0 or (high is not None and below and not high.strip("0")):
        return zero, []
    if low is None and high is None:
        return True, [f"[0-9]{{1,{room}}}"]
    smallest, largest = int((low or "0")[0]), int((high or "0")[0]) if high is not None else 9
    first, last = smallest + (low is not None), largest - (high is not None)
    tail = f" [0-9]{{0,{room - 1}}}" if room > 1 else ""
    parts = [f"[{first}-{last}]{tail}"] if first <= last else []
    if low is not None and smallest <= largest:
        ceiling = high[1:] if high is not None and smallest == largest else None
        parts += _digit(smallest, _fraction(low[1:], ceiling, above, below and ceiling is not None, room - 1))
    if high is not None and (low is None or smallest < largest):
        parts += _digit(largest, _fraction(None, high[1:], False, below, room - 1))
    return zero, parts


def _digit(digit: int, rest: tuple[bool, list[str]]) -> list[str]:
    bare, digits = rest
    return [f'"{digit}"'] * bare + [f'"{digit}" {one}' for one in digits]
