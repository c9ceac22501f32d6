"""Registered families: those that people add to the built-in ones. Kept as files in `XI_HOME/families`, each named after its family.

They stand in the hub's registry of families beside the built-in ones, so that everything that knows those knows them too.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import msgspec

from xi_core.errors import Conflict, InvalidRequest, NotFound
from xi_core.models.family import ModelFamily
from xi_core.models.family_file import LARGEST_FILE, FamilyFile, expanded
from xi_core.models.registration_form import Form, read_form
from xi_core.plugins import Registry

log = logging.getLogger(__name__)

PLUGIN = "registered"
"""Stands in a registry where a built-in family has the name of its plugin."""


class RegisteredFamilies:
    """What is registered in `families`, and its files in `home`."""

    def __init__(self, families: Registry[ModelFamily], home: Path) -> None:
        """Takes in the files that are there. One that can't be read, or whose name a built-in family has by now, is logged and left out."""
        self._families, self._folder = families, home / "families"
        self._kept: set[str] = set()
        for path in sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []:
            try:
                self._take_in(_read(path))
            except (InvalidRequest, Conflict, OSError) as error:
                log.warning("the registered family %s is left out: %s", path, error)

    def is_registered(self, name: str) -> bool:
        """Whether a family of this name was registered, and isn't built in."""
        return self._families.plugin_of.get(name.lower()) == PLUGIN

    def is_kept(self, name: str) -> bool:
        """Whether the family is there after a restart."""
        return not self.is_registered(name) or name.lower() in self._kept

    def register(self, text: str, model_type: str | None, persist: bool) -> Form:
        """Add the family in `text`. Raises `InvalidRequest` (line and field named), `Conflict` for a name that is taken."""
        form = self.checked(text, model_type)
        if persist:
            self.write(form.family)
        self.add(form.family, persist)
        return form

    def checked(self, text: str, model_type: str | None) -> Form:
        """The family in `text`, which can be added. Raises as `register`."""
        form = read_form(text, model_type)
        if model_type is not None and form.family.model_type != model_type:
            raise InvalidRequest(
                f"the family is of type {form.family.model_type}, and is registered as {model_type}; give the type that it has",
                param="model_type",
            )
        self._check_free(form.family)
        return form

    def unregister(self, name: str, model_type: str | None = None) -> None:
        """Take a family out again, and its file. Raises `NotFound`, `Conflict` for a built-in one."""
        found = self._families.find(name)
        if found is None or (model_type is not None and found.model_type != model_type):
            known = ", ".join(f.name for f in self._families if self.is_registered(f.name)) or "none"
            of_type = f" of type {model_type}" if model_type else ""
            raise NotFound(f"no model '{name[:128]}'{of_type}; registered: {known}", param="model_name")
        if not self.is_registered(found.name):
            raise Conflict(f"'{found.name}' is built in: only registered models can be taken out", param="model_name")
        if found.name.lower() in self._kept:
            self._path(found.name).unlink(missing_ok=True)
            self._kept.discard(found.name.lower())
        self._families.remove(found.name)

    def _take_in(self, family: FamilyFile) -> None:
        self._check_free(family)
        self.add(family, True)

    def _check_free(self, family: FamilyFile) -> None:
        for name in (family.name, *family.aliases):
            holder = self._families.find(name)
            if holder is not None:
                if self.is_registered(holder.name):
                    raise Conflict(f"'{name}' is registered already; take it out first: xi unregister -n {holder.name}", param="model_name")
                raise Conflict(f"the name '{name}' is taken by the built-in model '{holder.name}'; choose another", param="model_name")

    def add(self, family: FamilyFile, kept: bool) -> None:
        """Add a family that was checked; `kept`: and written."""
        self._families.add(expanded(family), PLUGIN)
        if kept:
            self._kept.add(family.name.lower())

    def write(self, family: FamilyFile) -> None:
        """Write its file, whole or not at all; it waits for the disk. Raises `InvalidRequest` where it can't be written."""
        path = self._path(family.name)
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(family), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise InvalidRequest(f"the family can't be kept in {self._folder}: {error.strerror or error}", param="persist") from None

    def _path(self, name: str) -> Path:
        """In lower case: names that differ in case alone are the same."""
        return self._folder / f"{name.lower()}.json"


def _read(path: Path) -> FamilyFile:
    if path.stat().st_size > LARGEST_FILE:
        raise InvalidRequest(f"it is over {LARGEST_FILE} bytes")
    family = read_form(path.read_bytes(), place=path.name).family
    if family.name.lower() != path.stem.lower():
        raise InvalidRequest(f"it holds the family '{family.name}': a file is named after its family")
    return family
