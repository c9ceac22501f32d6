"""Matching: which engine takes which spec on which worker, and why the others don't. Workers are asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct

from xi_core.api.control import EngineStatus, LaunchSpec, SpecVerdict
from xi_core.cluster.messages import Inspect, MatchEngines, Register
from xi_core.engine.info import EngineInfo, HostInfo, Support
from xi_core.errors import DeadlineExceeded, LaunchError, TransportError, Unavailable, XiError
from xi_core.models import catalog
from xi_core.models.family import ModelSpec
from xi_core.plugins import DISTRIBUTION, PluginHub
from xi_core.transport.rpc import Link

UNKNOWN = Support(ok=False, reason="not known to any worker")


class WorkerLink(Struct, frozen=True):
    """A connected worker: what it told of itself, and the link to it."""

    register: Register
    link: Link


class Matching:
    """Asks workers. `workers` waits until there is one, or raises `Unavailable`."""

    def __init__(
        self, hub: PluginHub, workers: Callable[[], Awaitable[Mapping[str, WorkerLink]]], default_source: str = "huggingface"
    ) -> None:
        self._hub, self._workers, self._default_source = hub, workers, default_source

    async def candidates(self, spec: LaunchSpec) -> list[ModelSpec]:
        """The model specs that `spec`, which is normalised, can mean. Raises `LaunchError`s, `InvalidRequest`, `ConfigError`."""
        if spec.source:
            self._hub.sources.asked(spec.source, param="source")
        default = self._hub.sources.get(self._default_source, param="XI_MODEL_SRC").name
        path = catalog.path_of(spec, self._hub.families)
        inspected = await self._inspect(path) if path else None
        return catalog.candidates(spec, self._hub.families, inspected, default)

    async def _inspect(self, path: str) -> ModelSpec:
        errors: list[XiError] = []
        for worker in (await self._workers()).values():
            try:
                found: ModelSpec = (await worker.link.call(Inspect(path))).model
                return found
            except LaunchError as error:
                errors.insert(0, error)
            except (TransportError, DeadlineExceeded) as error:
                errors.append(_lost(worker, error))
        raise errors[0]

    async def match(self, models: Sequence[ModelSpec]) -> list[dict[str, Support]]:
        """For each model, per engine the best answer of any worker. Raises `Unavailable` or `DeadlineExceeded` where none gave any."""
        best: list[dict[str, Support]] = [{} for _ in models]
        lost: list[XiError] = []
        workers = (await self._workers()).values()
        for worker in workers:
            try:
                answers: list[dict[str, Support]] = (await worker.link.call(MatchEngines(models=list(models)))).models
            except (TransportError, DeadlineExceeded) as error:
                lost.append(_lost(worker, error))
                continue
            for known, told in zip(best, answers, strict=True):
                for name, support in told.items():
                    if name not in known or (support.ok and not known[name].ok):
                        known[name] = support
        if len(lost) == len(workers):
            raise lost[0]
        return best

    async def report(self, spec: LaunchSpec | None, model_type: str | None = None) -> list[EngineStatus]:
        """Every engine, or the one that `spec` names; with `spec`, which of its model's specs, of `model_type`, each takes.

        Raises as `resolve`.
        """
        workers = await self._workers()
        models = await self.candidates(catalog.normalised(spec)) if spec is not None else []
        models = of_type(models, model_type, spec.model_name) if spec is not None and model_type is not None else models
        matches = await self.match(models) if models else []
        given = self._hub.engines.get(spec.model_engine, param="model_engine") if spec is not None and spec.model_engine else None
        return [status(self._hub, info, best_probe(info, workers), models, matches) for info in ([given] if given else self._hub.engines)]


def _lost(worker: WorkerLink, error: TransportError | DeadlineExceeded) -> XiError:
    """What to tell of a worker that went away while it was asked, or gave no answer in time. Others may answer."""
    if isinstance(error, DeadlineExceeded):
        return error
    return Unavailable(f"worker {worker.register.worker} went away while it was asked: {error.message}", retry_after=1.0)


def status(
    hub: PluginHub, info: EngineInfo, probe: Support, models: Sequence[ModelSpec], matches: Sequence[Mapping[str, Support]]
) -> EngineStatus:
    """An engine, by its probe, and what it says of each of the models."""
    reason = probe.reason if probe.ok else with_pip(hub, info, probe.reason)
    answers = [found.get(info.name, UNKNOWN) for found in matches]
    specs = [_verdict(model, support, probe, reason) for model, support in zip(models, answers, strict=True)]
    return EngineStatus(
        name=info.name,
        available=probe.ok,
        reason=reason,
        formats=list(info.formats),
        plugin=hub.engines.plugin_of.get(info.name.lower(), ""),
        model=_in_a_word(answers) if answers else None,
        specs=specs,
    )


def with_pip(hub: PluginHub, engine: EngineInfo, reason: str) -> str:
    """Why an engine can't run here, with the pip line where its library is missing."""
    if "pip install" in reason:
        return reason
    return f"{reason or 'its library is not installed'}; install it and start xi again: {_pip_line(hub, engine)}"


def _pip_line(hub: PluginHub, engine: EngineInfo) -> str:
    plugin = hub.engines.plugin_of.get(engine.name.lower(), "")
    record = next((r for r in hub.records if r.name == plugin), None)
    if record is not None and record.distribution == DISTRIBUTION:
        return f"pip install '{DISTRIBUTION}[{engine.name.replace('.', '-')}]'"
    return "pip install " + " ".join(f"'{r}'" for r in engine.requirements or (engine.name,))


def of_type(models: list[ModelSpec], wanted: str | None, name: str) -> list[ModelSpec]:
    """Those of this model type. Raises `LaunchError` where there is none, naming the right one."""
    kept = [model for model in models if model.model_type == wanted]
    if not kept:
        types = " or ".join(dict.fromkeys(model.model_type for model in models))
        what = f"'{name}' is a model of type {types}, not {wanted}"
        raise LaunchError(f"{what}: launch it with model type {types} (xi launch -t {types})", param="model_type")
    return kept


def installed(engine: EngineInfo, workers: Mapping[str, WorkerLink]) -> bool:
    """Whether the engine runs on some worker."""
    return any(worker.register.engines.get(engine.name, UNKNOWN).ok for worker in workers.values())


def best_probe(engine: EngineInfo, workers: Mapping[str, WorkerLink]) -> Support:
    """Whether the engine runs on some worker; its version there, or the first worker's reason why not."""
    probes = [w.register.engines.get(engine.name, Support(ok=False, reason="unknown there")) for w in workers.values()]
    return next((probe for probe in probes if probe.ok), probes[0] if probes else UNKNOWN)


def hosts_of(workers: Mapping[str, WorkerLink]) -> list[HostInfo]:
    """The machines of those workers that tell of theirs."""
    return [worker.register.host for worker in workers.values() if worker.register.host is not None]


def _verdict(model: ModelSpec, support: Support, probe: Support, missing: str) -> SpecVerdict:
    """What the model itself can't do there is said before what is not installed: installing it would be of no use."""
    return SpecVerdict(
        model_format=model.format,
        model_size_in_billions=model.size_in_billions,
        quantization=model.quantization,
        runs=support.ok and probe.ok,
        reason=missing if support.ok and not probe.ok else support.reason,
    )


def _in_a_word(answers: Sequence[Support]) -> str:
    return "yes" if any(answer.ok for answer in answers) else answers[0].reason
