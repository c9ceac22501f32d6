"""`xi_core.cluster.parser_choice`."""

from typing import Any

import pytest
from msgspec.structs import replace

from xi_core.api.control import LaunchSpec
from xi_core.cluster.parser_choice import check_thinking, with_parsers
from xi_core.engine.info import EngineInfo
from xi_core.errors import LaunchError
from xi_core.models.family import ModelSpec, SourceRef
from xi_core.plugins import Registry
from xi_core.serving.parser import ParserInfo
from xi_core.testing import fake_plugin

ENGINE: EngineInfo = next(info for info in fake_plugin.xi_engines() if info.name == "counting")
KNOWN: Registry[ParserInfo] = Registry("parser")
for name, kind in (("one", "tool"), ("two", "tool"), ("deep", "reasoning")):
    KNOWN.add(ParserInfo(name=name, kind=kind, parser="a:B"), "test")  # type: ignore[arg-type]


def model(**fields: Any) -> ModelSpec:
    return ModelSpec(name="toy", format="fake", source=SourceRef(source="local", id="/x"), **fields)


def chosen(engine: EngineInfo = ENGINE, own: str | None = "one", **fields: Any) -> tuple[str | None, str | None]:
    found = with_parsers(LaunchSpec(model_name="toy", **fields), model(tool_parser=own), engine, KNOWN)
    return found.tool_parser, found.reasoning_parser


def test_the_launch_goes_before_the_model() -> None:
    assert chosen() == ("one", None)
    assert chosen(tool_parser="Two", reasoning_parser="deep") == ("two", "deep")
    assert chosen(tool_parser="none") == (None, None)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_parser": "three"}, "unknown tool parser 'three'; known: one, two, none"),
        ({"tool_parser": "deep"}, "unknown tool parser 'deep'; known: one, two, none"),
        ({"reasoning_parser": "one"}, "unknown reasoning parser 'one'; known: deep, none"),
        ({"own": "missing"}, "model toy needs the tool parser 'missing', which no plugin offers"),
        ({"engine": replace(ENGINE, own_parsers=True), "tool_parser": "one"}, "parses its answers itself"),
    ],
)
def test_what_can_not_be_had_is_said(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        chosen(**fields)


HYBRID, THINKS, PLAIN = ["chat", "reasoning", "hybrid"], ["chat", "reasoning"], ["chat"]


@pytest.mark.parametrize(("abilities", "wanted"), [(HYBRID, True), (HYBRID, False), (PLAIN, False), (THINKS, None), (PLAIN, None)])
def test_thinking_that_can_be_switched(abilities: list[str], wanted: bool | None) -> None:
    check_thinking(LaunchSpec(model_name="toy", enable_thinking=wanted), model(abilities=abilities), ENGINE)


@pytest.mark.parametrize(
    ("abilities", "wanted", "engine", "words"),
    [
        (THINKS, False, ENGINE, "always thinks"),
        (PLAIN, True, ENGINE, "does not think"),
        (HYBRID, True, replace(ENGINE, manifest=fake_plugin.full_manifest()), "can't switch thinking"),
    ],
)
def test_thinking_that_can_not_be_switched(abilities: list[str], wanted: bool, engine: EngineInfo, words: str) -> None:
    with pytest.raises(LaunchError, match=words) as caught:
        check_thinking(LaunchSpec(model_name="toy", enable_thinking=wanted), model(abilities=abilities), engine)
    assert caught.value.param == "enable_thinking"
