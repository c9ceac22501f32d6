"""PluginHub: finds plugins by entry point, loads each on its own, and quarantines what fails, so that one bad plugin stops nothing."""

from __future__ import annotations

import importlib.metadata
import re
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

import pluggy

from xi_core import API_VERSION, __version__, hookspecs
from xi_core.errors import ConfigError, InvalidRequest, PluginError, XiError

if TYPE_CHECKING:
    from xi_core.cluster.devices import DeviceProbeInfo
    from xi_core.cluster.placement import SchedulerInfo
    from xi_core.cluster.routing import RouterInfo
    from xi_core.engine.info import EngineInfo
    from xi_core.models.family import ModelFamily
    from xi_core.models.source import SourceInfo
    from xi_core.serving.parser import ParserInfo
    from xi_core.transport.base import TransportInfo

DISTRIBUTION = "xi-inference"
"""The distribution that carries the core; a plugin's requirement on it tells which versions the plugin is made for."""

PluginState = Literal["loaded", "blocked", "quarantined"]


class Named(Protocol):
    """What every descriptor has."""

    @property
    def name(self) -> str: ...


D = TypeVar("D", bound=Named)


@dataclass
class PluginRecord:
    """One entry point, as `xi plugins` shows it. `error` is one line, `trace` the traceback where there is one."""

    name: str
    value: str
    distribution: str
    version: str
    state: PluginState = "loaded"
    offers: dict[str, list[str]] = field(default_factory=dict)
    error: str = ""
    trace: str = ""


class Registry(Generic[D]):
    """Descriptors of one hook by name and alias."""

    def __init__(self, noun: str, error: type[XiError] = ConfigError) -> None:
        self._noun = noun
        self._error = error
        self._by_name: dict[str, D] = {}
        self._aliases: dict[str, str] = {}
        self.plugin_of: dict[str, str] = {}

    def __iter__(self) -> Iterator[D]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def names(self) -> list[str]:
        """All names, sorted, aliases left out."""
        return sorted(self._by_name)

    def find(self, name: str) -> D | None:
        """The descriptor of this name or alias, in any case; None if there is none."""
        key = name.lower()
        return self._by_name.get(self._aliases.get(key, key))

    def get(self, name: str, param: str | None = None) -> D:
        """Like `find`, but raises an error that lists the known names, and the one that was meant, perhaps."""
        found = self.find(name)
        if found is None:
            known = ", ".join(d.name for d in self._by_name.values()) or "none, for no plugin that is loaded offers one; see `xi plugins`"
            raise self._error(f"unknown {self._noun} '{name}'; {self._hint(name)}known: {known}", param=param)
        return found

    def asked(self, name: str, param: str) -> D:
        """`get` for a name out of a request, not a setting: where `get` raises `ConfigError`, this raises `InvalidRequest`."""
        try:
            return self.get(name, param)
        except ConfigError as error:
            raise InvalidRequest(error.message, param=param) from None

    def _hint(self, name: str) -> str:
        """The name that was meant, perhaps."""
        import difflib

        close = difflib.get_close_matches(name.lower(), [*self._by_name, *self._aliases], n=1)
        found = self.find(close[0]) if close else None
        return f"did you mean '{found.name}'? " if found is not None else ""

    def claims(self, descriptor: D) -> list[str]:
        """The keys that this descriptor would take."""
        return [descriptor.name.lower(), *(alias.lower() for alias in getattr(descriptor, "aliases", ()))]

    def taken_by(self, key: str) -> str | None:
        """The plugin that holds this name or alias."""
        return self.plugin_of.get(self._aliases.get(key, key))

    def add(self, descriptor: D, plugin: str) -> None:
        """Register a descriptor whose keys are free."""
        name = descriptor.name.lower()
        self._by_name[name] = descriptor
        self.plugin_of[name] = plugin
        for alias in self.claims(descriptor)[1:]:
            self._aliases[alias] = name

    def remove(self, name: str) -> None:
        """Forget a descriptor and its aliases."""
        key = name.lower()
        del self._by_name[key], self.plugin_of[key]
        self._aliases = {alias: other for alias, other in self._aliases.items() if other != key}


class PluginHub:
    """All plugins of this process and what they offer, one `Registry` per hook."""

    def __init__(self) -> None:
        from xi_core.errors import UnknownEngine, UnknownModel

        self.records: list[PluginRecord] = []
        self.engines: Registry[EngineInfo] = Registry("engine", UnknownEngine)
        self.schedulers: Registry[SchedulerInfo] = Registry("scheduler")
        self.routers: Registry[RouterInfo] = Registry("router")
        self.sources: Registry[SourceInfo] = Registry("model source")
        self.transports: Registry[TransportInfo] = Registry("transport")
        self.families: Registry[ModelFamily] = Registry("model", UnknownModel)
        self.parsers: Registry[ParserInfo] = Registry("parser")
        self.devices: Registry[DeviceProbeInfo] = Registry("device probe")
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    @property
    def registries(self) -> Mapping[str, Registry[Any]]:
        """Registries by the name of their hook."""
        return {
            "xi_engines": self.engines,
            "xi_schedulers": self.schedulers,
            "xi_routers": self.routers,
            "xi_model_sources": self.sources,
            "xi_transports": self.transports,
            "xi_model_families": self.families,
            "xi_parsers": self.parsers,
            "xi_devices": self.devices,
        }

    @classmethod
    def load(cls, selection: str = "") -> PluginHub:
        """A hub with every installed plugin that `selection` (the setting `XI_PLUGINS`) lets through."""
        hub = cls()
        allows = parse_selection(selection)
        points = sorted(importlib.metadata.entry_points(group=hookspecs.PROJECT), key=_built_ins_first)
        allows.check(selection, [point.name for point in points])
        for point in points:
            record = _record(point)
            hub.records.append(record)
            if not allows(point.name):
                record.state = "blocked"
                record.error = f"XI_PLUGINS={selection}"
                continue
            hub._load_one(point, record)
        return hub

    def register(self, plugin: object, name: str) -> PluginRecord:
        """Register a plugin object directly, as tests do. Raises `PluginError` where loading by entry point would quarantine."""
        record = PluginRecord(name=name, value=repr(plugin), distribution="", version="")
        self.records.append(record)
        self._register(plugin, record)
        return record

    def _load_one(self, point: importlib.metadata.EntryPoint, record: PluginRecord) -> None:
        try:
            _check_api_version(point)
            self._register(point.load(), record)
        except Exception as error:  # a plugin may fail in any way at all; its traceback is kept and shown
            record.state = "quarantined"
            record.error = f"{type(error).__name__}: {error}" if not isinstance(error, XiError) else error.message
            record.trace = "" if isinstance(error, XiError) else traceback.format_exc()

    def _register(self, plugin: object, record: PluginRecord) -> None:
        self._manager.register(plugin, name=record.name)
        try:
            self._check_hooks(plugin, record.name)
            offered = self._offered(plugin)
            self._check_names(offered)
        except Exception:
            self._manager.unregister(plugin)
            raise
        for hook, descriptors in offered.items():
            for descriptor in descriptors:
                self.registries[hook].add(descriptor, record.name)
            record.offers[hook] = [descriptor.name for descriptor in descriptors]

    def _check_hooks(self, plugin: object, name: str) -> None:
        known = self.registries
        for caller in self._manager.get_hookcallers(plugin) or []:
            if not caller.has_spec():
                raise PluginError(f"plugin '{name}' implements '{caller.name}', which is no hook; hooks: {', '.join(sorted(known))}")

    def _offered(self, plugin: object) -> dict[str, list[Any]]:
        others = [p for p in self._manager.get_plugins() if p is not plugin]
        offered: dict[str, list[Any]] = {}
        for hook in self.registries:
            caller = self._manager.subset_hook_caller(hook, remove_plugins=others)
            descriptors = [d for answer in caller() for d in answer]
            if descriptors:
                offered[hook] = descriptors
        return offered

    def _check_names(self, offered: dict[str, list[Any]]) -> None:
        for hook, descriptors in offered.items():
            registry, own = self.registries[hook], set[str]()
            for descriptor in descriptors:
                for key in registry.claims(descriptor):
                    holder = registry.taken_by(key)
                    if holder is not None or key in own:
                        raise PluginError(f"{hook}: the name '{key}' is taken by plugin '{holder or 'itself'}'; choose another")
                own.update(registry.claims(descriptor))


class _Selection:
    def __init__(self, allowed: set[str], blocked: set[str]) -> None:
        self._allowed, self._blocked = allowed, blocked

    def check(self, text: str, installed: list[str]) -> None:
        """Raises `ConfigError` for a name that no installed plugin has: a misspelt one would let in what was to be blocked."""
        unknown = sorted((self._allowed | self._blocked).difference(installed))
        if unknown:
            raise ConfigError(f"XI_PLUGINS={text!r}: no installed plugin is named '{unknown[0]}'; installed: {', '.join(installed)}")

    def __call__(self, name: str) -> bool:
        return name not in self._blocked and (not self._allowed or name in self._allowed)


def parse_selection(text: str) -> _Selection:
    """`a,b` allows only these plugins, `-a,-b` all but these. Raises `ConfigError` for a mixture."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    blocked = {word[1:] for word in words if word.startswith("-")}
    allowed = {word for word in words if not word.startswith("-")}
    if allowed and blocked:
        raise ConfigError(f"XI_PLUGINS={text!r}: either names to allow (a,b) or names to block (-a,-b), not both")
    return _Selection(allowed, blocked)


def _built_ins_first(point: importlib.metadata.EntryPoint) -> tuple[bool, str]:
    """Built-ins load first, so that a name clash is always the newcomer's."""
    return (point.dist is None or point.dist.name != DISTRIBUTION, point.name)


def _record(point: importlib.metadata.EntryPoint) -> PluginRecord:
    dist = point.dist
    return PluginRecord(name=point.name, value=point.value, distribution=dist.name if dist else "", version=dist.version if dist else "")


def _check_api_version(point: importlib.metadata.EntryPoint) -> None:
    """Refuse a plugin whose distribution requires another xi, before any of its code runs."""
    for requirement in (point.dist.requires if point.dist else None) or []:
        bounds = _own_requirement(requirement)
        for operator, version in bounds:
            if not _satisfied(operator, version):
                raise PluginError(
                    f"made for {DISTRIBUTION}{operator}{version}, but this is {__version__} (plugin API {API_VERSION}); "
                    f"install a version of the plugin for it"
                )


def _own_requirement(requirement: str) -> list[tuple[str, str]]:
    match = re.match(r"^([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)", requirement)
    if match is None or re.sub(r"[-_.]+", "-", match[1]).lower() != DISTRIBUTION:
        return []
    return re.findall(r"(>=|<=|==|!=|<|>|~=)\s*([0-9][0-9.]*)", match[2])


def _satisfied(operator: str, version: str) -> bool:
    """Whether this version satisfies one bound, by release numbers (PEP 440's pre-releases play no part in the contract)."""
    ours, theirs = _release(__version__), _release(version)
    if operator == "~=":
        return ours >= theirs and ours[: len(version.split(".")) - 1] == theirs[: len(version.split(".")) - 1]
    return {
        ">=": ours >= theirs, "<=": ours <= theirs, "==": ours == theirs,
        "!=": ours != theirs, "<": ours < theirs, ">": ours > theirs,
    }[operator]  # fmt: skip


def _release(version: str) -> tuple[int, ...]:
    numbers = [int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))
