"""Which engines and model families there are: gateway → supervisor."""

from __future__ import annotations

from msgspec import Struct

from xi_core.api.control import EngineStatus, LaunchSpec, RegisterAnswer, Registration
from xi_core.cluster.messages.answers import Done


class ListEngines(Struct, tag="list_engines"):
    """The engines and whether they run on some worker; with `model`, a launch of it, which of the specs it can mean each takes."""

    model: LaunchSpec | None = None
    model_type: str | None = None
    """The type that the model must have."""


class Engines(Struct):
    """Engines."""

    engines: list[EngineStatus]


class ListFamilies(Struct, tag="list_families", kw_only=True):
    """The model families of a type (None: of all), built-in ones and registered ones."""

    model_type: str | None = None
    engine: str | None = None
    """Those alone that this engine knows how to run, on Linux with a GPU, whether it is installed here or not."""
    detailed: bool = False
    """With all of their specs."""


class Families(Struct):
    """Model families."""

    families: list[Registration]


class GetFamily(Struct, tag="get_family", kw_only=True):
    """One family with all of its specs."""

    name: str
    model_type: str | None = None


class RegisterFamily(Struct, tag="register_family", kw_only=True):
    """Add a family, of which `text` is the file. `persist`: keep it beyond this supervisor's life."""

    text: str
    model_type: str | None = None
    persist: bool = True


class UnregisterFamily(Struct, tag="unregister_family", kw_only=True):
    """Take a registered family out again. What runs of it runs on."""

    name: str
    model_type: str | None = None


ANSWERS: dict[type[Struct], type[Struct]] = {
    ListEngines: Engines,
    ListFamilies: Families,
    GetFamily: Registration,
    RegisterFamily: RegisterAnswer,
    UnregisterFamily: Done,
}
"""Commands, each with the type of its answer."""
