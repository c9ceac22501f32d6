"""The vocabulary of the control plane, put together of the modules of its conversations."""

from __future__ import annotations

import importlib
import pkgutil

from msgspec import Struct

from xi_core.cluster import messages


def structs() -> set[type[Struct]]:
    """All that the modules define."""
    modules = [importlib.import_module(f"{messages.__name__}.{found.name}") for found in pkgutil.iter_modules(messages.__path__)]
    return {
        found for module in modules for found in vars(module).values() if isinstance(found, type) and found.__module__ == module.__name__
    }


def test_all_that_has_a_tag_is_a_command_or_a_notice() -> None:
    tagged = {found for found in structs() if found.__struct_config__.tag is not None}
    assert tagged == messages.ANSWERS.keys() | set(messages.NOTICES)
    assert not messages.ANSWERS.keys() & set(messages.NOTICES)
    assert len({found.__struct_config__.tag for found in tagged}) == len(tagged)


def test_every_message_can_be_had_of_the_package() -> None:
    assert {found.__name__ for found in structs()} <= set(messages.__all__)


def test_gateways_send_commands() -> None:
    assert set(messages.OF_GATEWAYS) <= messages.ANSWERS.keys()
