"""What a supervisor answers of model families: listing, showing, registering and unregistering them."""

from __future__ import annotations

import asyncio
import logging
import math

import msgspec

from xi_core.api.control import RegisterAnswer, Registration, SpecInfo
from xi_core.cluster import messages as m
from xi_core.cluster.threads import in_thread
from xi_core.config import Settings
from xi_core.engine.info import EngineInfo, HostInfo
from xi_core.errors import NotFound
from xi_core.models.family import ModelFamily, ModelSpec
from xi_core.models.registered import RegisteredFamilies
from xi_core.plugins import PluginHub
from xi_core.transport.rpc import Calls

log = logging.getLogger(__name__)

GPU_HOST = HostInfo(
    system="linux", machine="x86_64", python="3.12.0", cpus=64, memory=1 << 40, device_kinds=("cuda",), device_memory=80 << 30
)
"""Stands for any machine that engines for GPUs are made for."""


class Registrations:
    """The families of a hub, and those that people add."""

    def __init__(self, hub: PluginHub, config: Settings) -> None:
        """Takes in what is registered in `XI_HOME`."""
        self._hub = hub
        self._registered = RegisteredFamilies(hub.families, config.home_dir)
        self._writing = asyncio.Lock()

    def calls(self) -> Calls:
        """What it answers."""
        return {
            m.ListFamilies: self._list,
            m.GetFamily: self._get,
            m.RegisterFamily: self._register,
            m.UnregisterFamily: self._unregister,
        }

    async def _list(self, command: m.ListFamilies) -> m.Families:
        wanted = command.model_type
        found = [f for f in self._hub.families if wanted is None or f.model_type == wanted]
        if command.engine is not None:
            engine = self._hub.engines.get(command.engine, param="engine")
            found = [family for family in found if any(_knows(engine, spec) for spec in family.specs)]
        described = [self._described(family) for family in sorted(found, key=lambda f: f.name.lower())]
        if not command.detailed:
            described = [msgspec.structs.replace(one, model_specs=[]) for one in described]
        return m.Families(described)

    async def _get(self, command: m.GetFamily) -> Registration:
        family = self._hub.families.find(command.name)
        if family is None or (command.model_type is not None and family.model_type != command.model_type):
            of_type = f" of type {command.model_type}" if command.model_type else ""
            raise NotFound(f"no model '{command.name[:128]}'{of_type} is registered; `xi registrations` lists them", param="model_name")
        return self._described(family)

    async def _register(self, command: m.RegisterFamily) -> RegisterAnswer:
        async with self._writing:
            form = self._registered.checked(command.text, command.model_type)
            if command.persist:
                await in_thread(lambda: self._registered.write(form.family))
            self._registered.add(form.family, command.persist)
        log.info("model %s (%s) is registered%s", form.family.name, form.family.model_type, "" if command.persist else ", not kept")
        return RegisterAnswer(model_name=form.family.name, model_type=form.family.model_type, notes=form.notes)

    async def _unregister(self, command: m.UnregisterFamily) -> m.Done:
        self._registered.unregister(command.name, command.model_type)
        log.info("model %s is not registered any more", command.name)
        return m.Done()

    def _described(self, family: ModelFamily) -> Registration:
        specs = family.specs
        return Registration(
            model_name=family.name,
            model_type=family.model_type,
            is_builtin=not self._registered.is_registered(family.name),
            model_description=family.description,
            model_ability=list(dict.fromkeys(ability for spec in specs for ability in spec.abilities)),
            context_length=max((spec.context_length or 0 for spec in specs), default=0) or None,
            formats=list(dict.fromkeys(spec.format for spec in specs)),
            sizes=sorted({spec.size_in_billions for spec in specs if spec.size_in_billions}, key=_number),
            aliases=list(family.aliases),
            persistent=self._registered.is_kept(family.name),
            model_path=family.path,
            model_specs=[_spec(spec) for spec in specs],
        )


def _number(size: str) -> tuple[float, str]:
    """Sorts sizes; a plugin's own words for them come last."""
    try:
        return float(size), size
    except ValueError:
        return math.inf, size


def _knows(engine: EngineInfo, spec: ModelSpec) -> bool:
    """Whether the engine runs the spec where it runs at all. A reason beside a yes is a doubt."""
    support = engine.match(spec, GPU_HOST)
    return support.ok and not support.reason


def _spec(spec: ModelSpec) -> SpecInfo:
    return SpecInfo(
        model_format=spec.format,
        model_size_in_billions=spec.size_in_billions,
        quantization=spec.quantization,
        model_hub=spec.source.source,
        model_id=spec.source.id,
        model_revision=spec.source.revision,
        files=list(spec.source.files),
        mirrors={mirror.source: mirror.id for mirror in spec.mirrors},
    )
