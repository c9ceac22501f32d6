"""The page of what each engine honours, for `reference.py`: manifests of the built-in engines beside the parity suite's results."""

from __future__ import annotations

from pathlib import Path

import msgspec

from xi_core.engine.info import EngineInfo
from xi_core.plugins import PluginHub
from xi_core.testing.proofs import Parity, file_name
from xi_core.wire.manifest import COMMON_FIELDS, EMBEDDING_FIELDS, RERANK_FIELDS, STRUCTURED_FIELDS, TOOL_FIELDS, Ability

RESULTS = Path(__file__).parents[1] / "tests" / "data" / "parity"
ORDER = (*COMMON_FIELDS, *STRUCTURED_FIELDS, *TOOL_FIELDS, "chat_template_kwargs", "echo", *EMBEDDING_FIELDS, *RERANK_FIELDS)
HEAD = """# Capabilities

Made from the engines' manifests (`plugin.py` of each) and from what the parity suite proved (`tests/data/parity/`, written by
`make test-engines`). ✓: proven by the suite on the version named. A model may offer less than its engine: without a chat template
there is no chat, without a parser of tool calls there are no tools. A request that uses a field that the loaded model doesn't honour is
answered with a 400 that names it. `messages`, `prompt`, `input`, `query`, `documents`, `model`, `stream` and `user` are always taken.
`max_tokens` stands for `max_completion_tokens` too, `logprobs` for `top_logprobs`.
"""


def capabilities() -> str:
    """Engine by endpoint by field."""
    engines = built_in_engines()
    results = {info.name: read_results(info) for info in engines}
    routes = sorted({route for info in engines for route in info.manifest.endpoints})
    rows = [_tested(results[info.name]) for info in sorted(engines, key=lambda info: info.name.lower())]
    parts = [HEAD, "| engine | tested |\n| --- | --- |\n" + "\n".join(rows) + "\n"]
    return "\n".join([*parts, *(_endpoint(route, engines, results) for route in routes)])


def built_in_engines() -> list[EngineInfo]:
    """Those of xi's own plugins, by name."""
    engines = [info for info in PluginHub.load().engines if info.engine.startswith("xi_plugins.")]
    return sorted(engines, key=lambda info: info.name.lower())


def read_results(info: EngineInfo) -> Parity:
    """The suite's results on an engine, as they are committed."""
    path = RESULTS / file_name(info)
    if not path.is_file():
        return Parity(engine=info.name, unproven="`make test-engines` has not seen it")
    return msgspec.json.decode(path.read_bytes(), type=Parity)


def _tested(results: Parity) -> str:
    return f"| {results.engine} | {results.version or f'not yet: {results.unproven}'} |"


def _endpoint(route: str, engines: list[EngineInfo], results: dict[str, Parity]) -> str:
    serving = [info for info in engines if route in info.manifest.endpoints]
    names = {name for info in serving for name in info.manifest.endpoints[route]}
    notes: list[str] = []
    rows = []
    for name in sorted(names, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        cells = [_cell(info, route, name, results[info.name], notes) for info in serving]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    others = [info.name for info in engines if info not in serving]
    left_out = f"Not served by {', '.join(others)}.\n" if others else ""
    head = f"| field | {' | '.join(info.name for info in serving)} |\n|{' --- |' * (len(serving) + 1)}"
    listed = "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))
    return "\n".join(part for part in (f"## `{route}`\n", left_out, f"{head}\n" + "\n".join(rows) + "\n", listed) if part)


def _cell(info: EngineInfo, route: str, name: str, results: Parity, notes: list[str]) -> str:
    cell = info.manifest.endpoints[route].get(name)
    if cell is None:
        return "no"
    words = [_limits(cell)]
    if cell.reason:
        words.append(f"({_number(notes, cell.reason)})")
    if name in results.proven.get(route, ()):
        words.append("✓")
    if why := results.excused.get(route, {}).get(name):
        words.append(f"({_number(notes, f'not proven: {why}')})")
    return " ".join(words)


def _number(notes: list[str], note: str) -> int:
    """The number of a footnote, which is added if it is new."""
    if note not in notes:
        notes.append(note)
    return notes.index(note) + 1


def _limits(cell: Ability) -> str:
    if cell.maximum is not None:
        return f"at most {cell.maximum:g}"
    return f"only {', '.join(cell.values)}" if cell.values else cell.state
