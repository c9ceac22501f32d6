from typing import Annotated, Any
from unittest.mock import Mock

import msgspec
import pytest
from msgspec import Meta

from xi_core.engine.info import EngineInfo, EngineOptions, Support
from xi_core.errors import UnknownOption
from xi_core.wire.manifest import Manifest


class Options(EngineOptions):
    context_length: Annotated[int, Meta(ge=16)] | None = None
    flash: bool = False
    ratio: float = 1.0


def info(options: type[EngineOptions] | None = Options) -> EngineInfo:
    def yes(*_: Any) -> Support:
        return Support(ok=True)

    return EngineInfo(name="e", engine="m:C", formats=("x",), manifest=Manifest(), probe=yes, match=yes, options=options)


def test_names_and_values_are_normalised() -> None:
    assert info().check_options({"context-length": "2048", "flash": "true", "ratio": 2}) == {
        "context_length": 2048,
        "flash": True,
        "ratio": 2.0,
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"contxt": 1}, r"no option 'contxt'.*context_length, flash, ratio"),
        ({"context_length": "many"}, "context_length.*engine e"),
        ({"context_length": 3}, "context_length.*>= 16"),
        ({"flash": 7}, "flash"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownOption, match=words) as caught:
        info().check_options(given)
    assert caught.value.param == next(iter(given))


def test_the_fields_of_options_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(EngineOptions):
        depth: int = 1

    fields = Mock(wraps=msgspec.structs.fields)
    monkeypatch.setattr(msgspec.structs, "fields", fields)
    assert [info(Own).check_options({"depth": text}) for text in ("2", "3")] == [{"depth": 2}, {"depth": 3}]
    fields.assert_called_once_with(Own)


def test_an_engine_that_checks_its_own_options_gets_them_as_they_are() -> None:
    assert info(None).check_options({"--any-thing": "x"}) == {"--any-thing": "x"}


def test_the_class_for_a_model_type() -> None:
    found = msgspec.structs.replace(info(), engines_by_type={"embedding": "m:E"})
    assert [found.engine_for(kind) for kind in ("LLM", "embedding", "rerank")] == ["m:C", "m:E", "m:C"]
