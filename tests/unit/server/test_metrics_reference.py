"""docs/reference/metrics.md names what a gateway shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from xi_core.wire.frames import EngineCounters, Load

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `xi_")]
    return {line.split("`")[1]: [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines}


async def test_what_a_gateway_shows_is_on_the_page(stage: Any, replica: Any, kit: Any) -> None:
    await stage.serve("m", replica(script=kit.answering()))
    await stage.ask()
    for link in stage.gateway.table.models["m"].links.values():
        link.load = Load(engine=EngineCounters(running=1))
    text = (await stage.control("GET", "/metrics")).body_text.decode()
    page = rows()
    shown = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert {name: cells[1] for name, cells in page.items()} == shown
    for name, help in re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE):
        assert page[name][3] == help
    for name, labels in re.findall(r"^(xi_\w+)\{(.*)\} \S+$", text, re.MULTILINE):
        base = re.sub("_(bucket|sum|count)$", "", name)
        names = [label for label in re.findall(r'(\w+)="', labels) if label != "le"]
        assert page[base][2] == ", ".join(f"`{label}`" for label in names), name
