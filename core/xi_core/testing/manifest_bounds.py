"""Whether a loaded model's manifest keeps within its engine's. Called by the kits and by tests of engines."""

from __future__ import annotations

from xi_core.wire.manifest import Ability, Manifest, no


def widened(loaded: Manifest, bound: Manifest) -> list[str]:
    """The cells of `loaded`, as `ROUTE FIELD`, that promise more than `bound` does. There must be none: it may only narrow."""
    found = []
    for route, fields in loaded.endpoints.items():
        if not bound.serves(route):
            found.append(route)
            continue
        allowed = bound.endpoints[route]
        found += [f"{route} {name}" for name, cell in fields.items() if not _within(cell, allowed.get(name, no("not in it")))]
    return found


def _within(cell: Ability, bound: Ability) -> bool:
    if cell.state == "no" or bound.state == "yes":
        return True
    if bound.state == "no" or cell.state == "yes":
        return False
    values = not bound.values or (bool(cell.values) and set(cell.values) <= set(bound.values))
    return values and (bound.maximum is None or (cell.maximum is not None and cell.maximum <= bound.maximum))
