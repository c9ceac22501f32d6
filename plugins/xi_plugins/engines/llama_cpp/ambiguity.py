"""In how many ways a text can be read by a regular expression. Pure; called by `regex.py`.

llama.cpp follows each way by itself for every token that the answer may go on with. Of `([a-z]*[a-z]*){9}` there are millions for a word
of ten letters, and while it follows them nobody else is served.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Ranges = list[tuple[int, int]]

LENGTH = 32
"""Characters of the texts that are looked at: as many as long tokens have."""
_MOST_PLACES = 300_000
_SHARED = 16
"""Characters at the start of alternatives that are looked at for being the same."""


class Chars(NamedTuple):
    """One character of `ranges`, code points from and to."""

    ranges: Ranges


class Row(NamedTuple):
    """One part after the other."""

    parts: list[Shape]


class Either(NamedTuple):
    """One of the parts."""

    parts: list[Shape]


class Often(NamedTuple):
    """`part`, from `least` to `most` times; None: without end."""

    part: Shape
    least: int
    most: int | None


Shape = Chars | Row | Either | Often
Places = list[int]


def either(parts: list[Shape], depth: int = _SHARED) -> Shape:
    """One of the parts. Those that begin alike share that beginning: of a list of words only one goes on, and the bound must see that."""
    alike: dict[tuple[tuple[int, int], ...], list[list[Shape]]] = {}
    found: list[Shape] = []
    for part in parts:
        row: list[Shape] = part.parts if isinstance(part, Row) else [part]
        if row and isinstance(row[0], Chars) and depth:
            alike.setdefault(tuple(row[0].ranges), []).append(row)
        else:
            found.append(part)
    for rows in alike.values():
        alone = [row for row in rows if len(row) == 1]
        found += [Row(row) for row in alone[1:]]  # one that comes twice can be read in two ways
        rest: list[Shape] = [Row(row[1:]) for row in rows if len(row) > 1]
        rest += [Row([]) for _ in alone[:1]]
        found.append(Row([rows[0][0], either(rest, depth - 1)]) if len(rest) > 1 else Row(rows[0]))
    return Either(found)


class TooLarge(Exception):
    """The expression has more places, one behind the other, than anybody could follow."""


class _Part(NamedTuple):
    """A part in the graph: the characters that it may begin and end with, and whether it may be empty."""

    first: Places
    last: Places
    empty: bool


class _Graph:
    """Every character of an expression, and which may stand behind it. Repetitions are written out, as far as `LENGTH` reaches."""

    def __init__(self) -> None:
        self.ranges: list[Ranges] = []
        self.behind: list[list[Places]] = []
        """For each character the lists of those that may follow it; many share a list."""
        self._left = _MOST_PLACES

    def add(self, shape: Shape) -> _Part:
        match shape:
            case Chars(ranges):
                self.count(1)
                self.ranges.append(ranges)
                self.behind.append([])
                place = [len(self.ranges) - 1]
                return _Part(place, place, False)
            case Either(parts):
                found = [self.add(part) for part in parts]
                return _Part(self._all(part.first for part in found), self._all(part.last for part in found), any(p.empty for p in found))
            case Row(parts):
                return self._row([self.add(part) for part in parts], 0)
            case Often(part, least, most):
                return self._often(part, least, most)

    def _often(self, shape: Shape, least: int, most: int | None) -> _Part:
        copies = max(1, min(LENGTH + 1, least if most is None else most))
        parts = [self.add(shape) for _ in range(copies)]
        if most is None or most > copies:
            self._link(parts[-1].last, parts[-1].first)
        found = self._row(parts, copies - min(copies, max(1, least)))
        return found._replace(empty=found.empty or least == 0)

    def _row(self, parts: list[_Part], optional: int) -> _Part:
        """Parts one behind the other; it may end before each of the last `optional`."""
        first: Places = []
        last: list[Places] = []
        ends = True
        for left, part in enumerate(reversed(parts)):
            if first:
                self._link(part.last, first)
            if ends:
                last.append(part.last)
            ends = left < optional or (ends and part.empty)
            first = self._all([part.first, first]) if part.empty else part.first
        return _Part(first, self._all(last), all(part.empty for part in parts))

    def _link(self, last: Places, first: Places) -> None:
        self.count(len(last))
        for place in last:
            self.behind[place].append(first)

    def _all(self, lists: Iterable[Places]) -> Places:
        found = [place for places in lists for place in places]
        self.count(len(found))
        return found

    def count(self, places: int) -> None:
        """Raises `TooLarge` once there are too many."""
        self._left -= places
        if self._left < 0:
            raise TooLarge


def most_ways(shape: Shape, enough: int) -> int:
    """No text of `LENGTH` characters, begun anywhere, can be read in more ways; `enough`: more than this need not be counted.

    An upper bound: where ways part, the rest of the text counts for each as its own worst one. Raises `TooLarge`.
    """
    graph = _Graph()
    graph.add(Row([shape]))
    kinds: dict[tuple[int, ...], int] = {}
    kind_of = [kinds.setdefault(tuple(map(id, behind)), len(kinds)) for behind in graph.behind]
    lists: dict[int, list[Places]] = {kind_of[place]: behind for place, behind in enumerate(graph.behind)}
    together: list[set[tuple[int, ...]]] = []
    for kind in range(len(kinds)):
        together.append(_together(graph.ranges, [place for places in lists[kind] for place in places]))
        graph.count(sum(map(len, together[-1])))
    if all(len(group) == 1 for groups in together for group in groups):
        return 1
    ways = [1] * len(kinds)
    for _ in range(LENGTH):
        ways = [max((sum(ways[kind_of[place]] for place in group) for group in groups), default=1) for groups in together]
        if max(ways) > enough:
            break
    return max(ways)


def _together(ranges: list[Ranges], places: Places) -> set[tuple[int, ...]]:
    """Which of `places` the same character may be at: one group for each character where that changes."""
    marks: list[tuple[int, bool, int]] = []
    for place in places:
        marks += [mark for low, high in ranges[place] for mark in ((low, True, place), (high + 1, False, place))]
    marks.sort()
    here: dict[int, int] = {}
    groups: set[tuple[int, ...]] = set()
    for index, (code, begins, place) in enumerate(marks):
        here[place] = here.get(place, 0) + (1 if begins else -1)
        if not here[place]:
            del here[place]
        if here and (index + 1 == len(marks) or marks[index + 1][0] != code):
            groups.add(tuple(place for place, times in sorted(here.items()) for _ in range(times)))
    return groups
