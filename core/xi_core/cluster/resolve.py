"""Resolving: from what the user asked for to a model spec and an engine that takes it. The supervisor calls it; workers are asked.

Errors name the thing and what to do, and reach the caller of the launch before anything is started.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec
from msgspec import Struct

from xi_core.api.control import MODEL_TYPES, EngineStatus, LaunchSpec, has_environment, model_type_of
from xi_core.cluster import layout
from xi_core.cluster.envrules import check_env
from xi_core.cluster.launches import Wanted
from xi_core.cluster.lora_choice import check_engine, check_lora, check_names, takes_lora
from xi_core.cluster.messages import Inspect, MatchEngine, Register
from xi_core.cluster.parser_choice import check_thinking, with_parsers
from xi_core.cluster.requirement import check_environment
from xi_core.cluster.reservation import reserved
from xi_core.config import Settings
from xi_core.engine.info import EngineInfo, Support
from xi_core.errors import EngineNotInstalled, InvalidRequest, LaunchError, XiError
from xi_core.models import catalog
from xi_core.models.family import ModelSpec
from xi_core.plugins import DISTRIBUTION, PluginHub
from xi_core.transport.rpc import Link


class WorkerLink(Struct, frozen=True):
    """A connected worker: what it told of itself, and the link to it."""

    register: Register
    link: Link


class Choice(Struct, frozen=True):
    """A model spec and the engine that will run it."""

    model: ModelSpec
    engine: EngineInfo


class Resolver:
    """Resolves launch specs with the hub's engines and families. `workers` waits until there is one, or raises `Unavailable`."""

    def __init__(self, hub: PluginHub, config: Settings, workers: Callable[[], Awaitable[Mapping[str, WorkerLink]]]) -> None:
        self._hub, self._settings = hub, config
        self._workers = workers

    async def resolve(self, spec: LaunchSpec) -> Wanted:
        """What `spec`, which is normalised, means. Raises `LaunchError` and its kinds, `InvalidRequest`, `Unavailable`."""
        self._check(spec)
        given = self._hub.engines.get(spec.model_engine, param="model_engine") if spec.model_engine else None
        if given is not None:
            given.check_options(spec.options)
            check_engine(spec, given, self._hub.engines)
        choice = await self._choose(spec, given)
        model = with_parsers(spec, choice.model, choice.engine, self._hub.parsers)
        check_thinking(spec, model, choice.engine)
        check_lora(spec, model)
        spec = msgspec.structs.replace(
            spec,
            options=choice.engine.check_options(spec.options),
            model_engine=choice.engine.name if given else None,
            scheduler=self._hub.schedulers.get(spec.scheduler, param="scheduler").name if spec.scheduler else None,
        )
        n_gpu = await self._n_gpu(spec)
        layout.check(spec, model, choice.engine, n_gpu)
        return Wanted(
            uid=spec.model_uid or "",
            spec=spec,
            model=model,
            engine=choice.engine.name,
            n_gpu=n_gpu,
            created=int(time.time()),
            memory=reserved(spec, model, choice.engine, n_gpu),
            memory_share=layout.memory_share(choice.engine, spec.options) if n_gpu else 0.0,
            exclusive=not self._settings.allow_multi_replica_per_gpu,
        )

    async def engines(self, model: str | None) -> list[EngineStatus]:
        """Every engine, and with `model` whether it takes that one. Raises as `resolve`."""
        workers = await self._workers()
        matches: dict[str, list[Support]] = {}
        if model is not None:
            for candidate in await self._candidates(catalog.normalised(LaunchSpec(model_name=model))):
                for name, support in (await self._match(candidate)).items():
                    matches.setdefault(name, []).append(support)
        return [self._status(info, workers, matches) for info in self._hub.engines]

    def parsers(self, model: ModelSpec) -> dict[str, str]:
        """The parsers that a model's answers need: kind → `module:Class`."""
        named = {"tool": model.tool_parser, "reasoning": model.reasoning_parser}
        return {kind: self._hub.parsers.get(name).parser for kind, name in named.items() if name}

    # ---- choosing -------------------------------------------------------------------------------

    async def _choose(self, spec: LaunchSpec, given: EngineInfo | None) -> Choice:
        found = _of_type(spec, await self._candidates(spec))
        workers = await self._workers()
        if given is not None:
            self._check_given(spec, given, found, workers)
        installed = [engine for engine in self._hub.engines if _installed(engine, workers)]
        engines = [given] if given else sorted(installed, key=lambda e: -e.priority)
        matches = [(model, await self._match(model)) for model in found]
        refusals: dict[str, str] = {}
        for engine in engines:
            for model, supports in sorted(matches, key=lambda m: _preference(engine, m[0])):
                support = takes_lora(spec, engine, supports.get(engine.name, Support(ok=False, reason="not known to any worker")))
                if support.ok:
                    return Choice(model, engine)
                refusals.setdefault(engine.name, f"{model.describe()}: {support.reason}" if len(found) > 1 else support.reason)
        if given is not None:
            raise LaunchError(f"engine {given.name} can't run '{spec.model_name}': {refusals[given.name]}", param="model_engine")
        raise self._none_takes(spec, found, refusals, workers)

    def _check_given(self, spec: LaunchSpec, engine: EngineInfo, found: list[ModelSpec], workers: Mapping[str, WorkerLink]) -> None:
        probes = [w.register.engines.get(engine.name, Support(ok=False, reason="unknown there")) for w in workers.values()]
        if not _installed(engine, workers) and not has_environment(spec):
            raise EngineNotInstalled(
                f"engine {engine.name} can't run here: {self._with_pip(engine, probes[0].reason)}", param="model_engine"
            )
        formats = list(dict.fromkeys(model.format for model in found))
        if not set(formats) & set(engine.formats):
            able = [e.name for e in self._hub.engines if set(e.formats) & set(formats)]
            raise LaunchError(
                f"engine {engine.name} can't load {found[0].name} as {' or '.join(formats)}: it loads {', '.join(engine.formats)}; "
                f"engines that can: {', '.join(able) or 'none'}",
                param="model_engine",
            )

    def _none_takes(
        self, spec: LaunchSpec, found: list[ModelSpec], refusals: Mapping[str, str], workers: Mapping[str, WorkerLink]
    ) -> LaunchError:
        formats = {model.format for model in found}
        missing = [
            engine
            for engine in self._hub.engines
            if formats & set(engine.formats) and takes_lora(spec, engine, Support(ok=True)).ok and not _installed(engine, workers)
        ]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items()) or "no engine is installed"
        if missing:
            ways = "; or ".join(f"{e.name}: {self._with_pip(e, _probe_reason(e, workers))}" for e in missing)
            return EngineNotInstalled(
                f"no engine that is installed takes '{spec.model_name}' ({', '.join(sorted(formats))}): {reasons}. Others would: {ways}"
            )
        return LaunchError(f"no engine takes '{spec.model_name}' ({', '.join(sorted(formats))}): {reasons}")

    async def _candidates(self, spec: LaunchSpec) -> list[ModelSpec]:
        path = catalog.path_of(spec, self._hub.families)
        inspected = await self._inspect(path) if path else None
        return catalog.candidates(spec, self._hub.families, inspected)

    async def _inspect(self, path: str) -> ModelSpec:
        errors: list[XiError] = []
        for worker in (await self._workers()).values():
            try:
                found: ModelSpec = (await worker.link.call(Inspect(path))).model
                return found
            except LaunchError as error:
                errors.append(error)
        raise errors[0]

    async def _match(self, model: ModelSpec) -> dict[str, Support]:
        """Per engine the best answer of any worker."""
        best: dict[str, Support] = {}
        for worker in (await self._workers()).values():
            answers: dict[str, Support] = (await worker.link.call(MatchEngine(model=model))).engines
            for name, support in answers.items():
                if name not in best or (support.ok and not best[name].ok):
                    best[name] = support
        return best

    # ---- checks ---------------------------------------------------------------------------------

    def _check(self, spec: LaunchSpec) -> None:
        if model_type_of(spec.model_type) is None:
            raise InvalidRequest(f"model type '{spec.model_type}' can't be launched; types: {', '.join(MODEL_TYPES)}", param="model_type")
        if isinstance(spec.n_gpu, int) and spec.n_gpu < 0:
            raise InvalidRequest(f"n_gpu is {spec.n_gpu}; it is 'auto', a number from 0 on, or null for CPU", param="n_gpu")
        check_env(spec.env)
        check_environment(spec, self._settings.allow_virtual_env)
        check_names(spec)

    async def _n_gpu(self, spec: LaunchSpec) -> int:
        """How many devices each replica gets. Who names devices wants one: it is asked for even where no worker has any."""
        if spec.n_gpu == "auto":
            return int(spec.gpu_idx is not None or any(w.register.devices for w in (await self._workers()).values()))
        if spec.gpu_idx is not None and not spec.n_gpu:
            raise InvalidRequest("gpu_idx names devices, but n_gpu asks for none; leave one of them out", param="gpu_idx")
        return spec.n_gpu or 0

    def _with_pip(self, engine: EngineInfo, reason: str) -> str:
        if "pip install" in reason:
            return reason
        return f"{reason or 'its library is not installed'}; install it and start xi again: {self._pip_line(engine)}"

    def _pip_line(self, engine: EngineInfo) -> str:
        plugin = self._hub.engines.plugin_of.get(engine.name.lower(), "")
        record = next((r for r in self._hub.records if r.name == plugin), None)
        if record is not None and record.distribution == DISTRIBUTION:
            return f"pip install '{DISTRIBUTION}[{engine.name.replace('.', '-')}]'"
        return "pip install " + " ".join(f"'{r}'" for r in engine.requirements or (engine.name,))

    def _status(self, info: EngineInfo, workers: Mapping[str, WorkerLink], matches: Mapping[str, list[Support]]) -> EngineStatus:
        probes = [w.register.engines.get(info.name, Support(ok=False, reason="unknown there")) for w in workers.values()]
        good = next((p for p in probes if p.ok), None)
        answers = matches.get(info.name, [])
        return EngineStatus(
            name=info.name,
            available=good is not None,
            reason=good.reason if good else self._with_pip(info, probes[0].reason if probes else ""),
            formats=list(info.formats),
            plugin=self._hub.engines.plugin_of.get(info.name.lower(), ""),
            model=_verdict(answers) if answers else None,
        )


def _of_type(spec: LaunchSpec, found: list[ModelSpec]) -> list[ModelSpec]:
    """The candidates of the model type that the launch names. Raises `LaunchError` where there is none, naming the right one."""
    wanted = model_type_of(spec.model_type)
    kept = [model for model in found if model.model_type == wanted]
    if not kept:
        types = " or ".join(dict.fromkeys(model.model_type for model in found))
        raise LaunchError(
            f"'{spec.model_name}' is a model of type {types}, not {wanted}: launch it with model type {types} (xi launch -t {types})",
            param="model_type",
        )
    return kept


def _installed(engine: EngineInfo, workers: Mapping[str, WorkerLink]) -> bool:
    return any(worker.register.engines.get(engine.name, Support(ok=False)).ok for worker in workers.values())


def _preference(engine: EngineInfo, model: ModelSpec) -> int:
    order = [*engine.preferred_formats, *engine.formats]
    return order.index(model.format) if model.format in order else len(order)


def _probe_reason(engine: EngineInfo, workers: Mapping[str, WorkerLink]) -> str:
    return next((w.register.engines[engine.name].reason for w in workers.values() if engine.name in w.register.engines), "")


def _verdict(answers: Iterable[Support]) -> str:
    answers = list(answers)
    return "yes" if any(a.ok for a in answers) else answers[0].reason
