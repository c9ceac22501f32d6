"""`GET /v1/engines`: which engines there are, where they run, and which specs of a model each takes. `GET /v1/models/vllm-supported`."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from xi_core.api.control import EngineModels, EngineStatus, LaunchSpec, SpecVerdict, VllmModels
from xi_core.cluster.messages import Engines, Families, ListEngines, ListFamilies
from xi_core.errors import InvalidRequest
from xi_server.routes.answers import gateway_of, json_response
from xi_server.routes.launching import size_text
from xi_server.routes.registrations import known_type

router = APIRouter(tags=["engines"])

OfModel = Annotated[str | None, Query(description="The model whose specs are asked for: a name, a path or a hub id")]
OfEngine = Annotated[str | None, Query(description="With `model`: only this engine")]
OfFormat = Annotated[str | None, Query(description="With `model`: only specs of this format")]
OfSize = Annotated[str | None, Query(description="With `model`: only specs of this size, in billions of weights: 7, 0.5 or 0_5")]
OfQuantization = Annotated[str | None, Query(description="With `model`: only specs of this quantization")]
OfType = Annotated[str | None, Query(description="With `model`: only specs of this type: `LLM`, `embedding` or `rerank`")]


@router.get("/v1/engines")
async def list_engines(
    request: Request,
    model: OfModel = None,
    model_engine: OfEngine = None,
    model_format: OfFormat = None,
    size_in_billions: OfSize = None,
    quantization: OfQuantization = None,
    model_type: OfType = None,
) -> Response:
    """The engines, and whether they run on some worker; with `model`, also which of its specs each runs, and why not the others."""
    if model is None:
        filters = (model_engine, model_format, size_in_billions, quantization, model_type)
        if any(given is not None for given in filters):
            raise InvalidRequest("model: name the model whose specs are asked for", param="model")
        return json_response(await _asked(request, None, None))
    spec = _spec(model, model_engine, model_format, size_in_billions, quantization)
    return json_response(await _asked(request, spec, model_type))


@router.get("/v1/engines/{model_name}")
async def model_engines(request: Request, model_name: str) -> Response:
    """For each engine, as Xinference answers it: the formats, sizes and quantizations that it runs here, or the reason why none."""
    found = await _asked(request, _spec(model_name), None)
    return json_response({engine.name: _as_xinference(engine, model_name) for engine in found})


@router.get("/v1/engines/{model_type}/{model_name}")
async def typed_model_engines(request: Request, model_type: str, model_name: str) -> Response:
    """As `/v1/engines/{model_name}`, of a model of this type."""
    found = await _asked(request, _spec(model_name), model_type)
    return json_response({engine.name: _as_xinference(engine, model_name) for engine in found})


@router.get("/v1/models/vllm-supported")
async def vllm_models(request: Request) -> Response:
    """Names of the known models that vLLM runs, on Linux with a GPU; whether it is installed here is told by `/v1/engines`."""
    answer: Families = await gateway_of(request).supervisor.call(ListFamilies(model_type="LLM", engine="vLLM"))
    chats = [f.model_name for f in answer.families if "chat" in f.model_ability]
    others = [f.model_name for f in answer.families if "chat" not in f.model_ability]
    return json_response(VllmModels(chat=chats, generate=others))


async def _asked(request: Request, spec: LaunchSpec | None, model_type: str | None) -> list[EngineStatus]:
    kind = known_type(model_type) if model_type is not None else None
    if spec is not None and kind is not None:
        spec = msgspec.structs.replace(spec, model_type=kind)
    answer: Engines = await gateway_of(request).supervisor.call(ListEngines(spec, kind))
    return answer.engines


def _spec(
    model: str, engine: str | None = None, model_format: str | None = None, size: str | None = None, quantization: str | None = None
) -> LaunchSpec:
    return LaunchSpec(
        model_name=model,
        model_engine=engine,
        model_format=model_format,
        size_in_billions=size_text(size, "size_in_billions") if size else None,
        quantization=quantization,
    )


def _as_xinference(engine: EngineStatus, model: str) -> list[EngineModels] | str:
    """One entry for each format and size that runs, with its quantizations; else the reason why none does."""
    entries: dict[tuple[str, str | None], EngineModels] = {}
    for spec in engine.specs:
        if spec.runs:
            entry = entries.setdefault((spec.model_format, spec.model_size_in_billions), _entry(model, spec))
            entry.quantizations.append(spec.quantization or "none")
    return list(entries.values()) or "; ".join(dict.fromkeys(spec.reason for spec in engine.specs)) or engine.reason


def _entry(model: str, spec: SpecVerdict) -> EngineModels:
    size = spec.model_size_in_billions
    theirs: int | str | None = int(size) if size is not None and size.isdecimal() else size and size.replace(".", "_")
    return EngineModels(model_name=model, model_format=spec.model_format, model_size_in_billions=theirs, quantizations=[])
