"""Resolving: from what the user asked for to a model spec and an engine that takes it. The supervisor calls it; workers are asked.

Errors name the thing and what to do, and reach the caller of the launch before anything is started.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from xi_core.api.control import MODEL_TYPES, LaunchSpec, has_environment, model_type_of
from xi_core.cluster import layout
from xi_core.cluster.engine_choice import ranked
from xi_core.cluster.envrules import allowed_prefixes, check_env
from xi_core.cluster.launches import Share, Wanted
from xi_core.cluster.lora_choice import check_engine, check_lora, check_names, takes_lora
from xi_core.cluster.matching import UNKNOWN, Matching, WorkerLink, best_probe, hosts_of, installed, of_type, with_pip
from xi_core.cluster.parser_choice import check_thinking, with_parsers
from xi_core.cluster.remote_code import check_remote_code
from xi_core.cluster.requirement import check_environment
from xi_core.cluster.reservation import of_main_memory, reserved
from xi_core.config import Settings
from xi_core.engine.info import EngineInfo, Support
from xi_core.errors import EngineNotInstalled, InvalidRequest, LaunchError
from xi_core.models.family import ModelSpec
from xi_core.plugins import PluginHub


class Choice(Struct, frozen=True):
    """A model spec and the engine that will run it."""

    model: ModelSpec
    engine: EngineInfo


class Resolver:
    """Resolves launch specs with the hub's engines and families. `workers` waits until there is one, or raises `Unavailable`."""

    def __init__(self, hub: PluginHub, config: Settings, workers: Callable[[], Awaitable[Mapping[str, WorkerLink]]]) -> None:
        self._hub, self._settings = hub, config
        self._workers = workers
        self.matching = Matching(hub, workers, config.model_src)
        self._prefixes = allowed_prefixes(config)
        self.exposed = False
        """Whether other machines reach the server, so that launches may set fewer environment variables."""

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
            scheduler=self._hub.schedulers.asked(spec.scheduler, param="scheduler").name if spec.scheduler else None,
        )
        n_gpu = await self._n_gpu(spec)
        layout.check(spec, model, choice.engine, n_gpu)
        share = layout.memory_share(choice.engine, spec.options) if max(n_gpu, *layout.counts(spec, n_gpu), 0) else 0.0
        return Wanted(
            uid=spec.model_uid or "",
            spec=spec,
            model=model,
            engine=choice.engine.name,
            n_gpu=n_gpu,
            created=int(time.time()),
            memory=reserved(spec, model, choice.engine, n_gpu),
            main_memory=of_main_memory(spec, model),
            memory_share=share if n_gpu else 0.0,
            shares=[Share(own, reserved(spec, model, choice.engine, own), share if own else 0.0) for own in layout.counts(spec, n_gpu)],
            exclusive=not self._settings.allow_multi_replica_per_gpu,
        )

    def parsers(self, model: ModelSpec) -> dict[str, str]:
        """The parsers that a model's answers need: kind → `module:Class`."""
        named = {"tool": model.tool_parser, "reasoning": model.reasoning_parser}
        return {kind: self._hub.parsers.get(name).parser for kind, name in named.items() if name}

    # ---- choosing -------------------------------------------------------------------------------

    async def _choose(self, spec: LaunchSpec, given: EngineInfo | None) -> Choice:
        found = of_type(await self.matching.candidates(spec), model_type_of(spec.model_type), spec.model_name)
        if spec.trust_remote_code:
            found = [msgspec.structs.replace(model, remote_code=True) for model in found]
        workers = await self._workers()
        if given is not None:
            self._check_given(spec, given, found, workers)
        engines = [given] if given else [engine for engine in self._hub.engines if installed(engine, workers)]
        asked = [_with_packages(model, spec) for model in found]
        matches = {id(model): supports for model, supports in zip(found, await self.matching.match(asked), strict=True)}
        refusals: dict[str, str] = {}
        for engine, model in ranked(engines, found, hosts_of(workers), spec):
            support = takes_lora(spec, engine, matches[id(model)].get(engine.name, UNKNOWN))
            if support.ok:
                return Choice(model, engine)
            refusals.setdefault(engine.name, f"{model.describe()}: {support.reason}" if len(found) > 1 else support.reason)
        if given is not None:
            raise LaunchError(f"engine {given.name} can't run '{spec.model_name}': {refusals[given.name]}", param="model_engine")
        raise self._none_takes(spec, found, refusals, workers)

    def _check_given(self, spec: LaunchSpec, engine: EngineInfo, found: list[ModelSpec], workers: Mapping[str, WorkerLink]) -> None:
        if not installed(engine, workers) and not has_environment(spec):
            raise EngineNotInstalled(
                f"engine {engine.name} can't run here: {with_pip(self._hub, engine, best_probe(engine, workers).reason)}",
                param="model_engine",
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
            if formats & set(engine.formats) and takes_lora(spec, engine, Support(ok=True)).ok and not installed(engine, workers)
        ]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items()) or "no engine is installed"
        if missing:
            ways = "; or ".join(f"{e.name}: {with_pip(self._hub, e, best_probe(e, workers).reason)}" for e in missing)
            return EngineNotInstalled(
                f"no engine that is installed takes '{spec.model_name}' ({', '.join(sorted(formats))}): {reasons}. Others would: {ways}"
            )
        return LaunchError(f"no engine takes '{spec.model_name}' ({', '.join(sorted(formats))}): {reasons}")

    # ---- checks ---------------------------------------------------------------------------------

    def _check(self, spec: LaunchSpec) -> None:
        if model_type_of(spec.model_type) is None:
            raise InvalidRequest(f"model type '{spec.model_type}' can't be launched; types: {', '.join(MODEL_TYPES)}", param="model_type")
        if isinstance(spec.n_gpu, int) and spec.n_gpu < 0:
            raise InvalidRequest(f"n_gpu is {spec.n_gpu}; it is 'auto', a number from 0 on, or null for CPU", param="n_gpu")
        check_env(spec.env, self._prefixes if self.exposed else None)
        check_remote_code(spec, self._settings.allow_remote_code)
        check_environment(spec, self._settings.allow_virtual_env)
        check_names(spec)

    async def _n_gpu(self, spec: LaunchSpec) -> int:
        """How many devices each replica gets. Who names devices wants one: it is asked for even where no worker has any."""
        if spec.n_gpu == "auto":
            return int(spec.gpu_idx is not None or any(w.register.devices for w in (await self._workers()).values()))
        if spec.gpu_idx is not None and not spec.n_gpu:
            raise InvalidRequest("gpu_idx names devices, but n_gpu asks for none; leave one of them out", param="gpu_idx")
        return spec.n_gpu or 0


def _with_packages(model: ModelSpec, spec: LaunchSpec) -> ModelSpec:
    """The model with the packages of its own environment, which an engine may ask for before it takes it."""
    return msgspec.structs.replace(model, packages=[*model.packages, *spec.virtual_env_packages]) if has_environment(spec) else model
