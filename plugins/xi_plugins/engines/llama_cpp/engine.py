"""`LlamaCppEngine`: llama.cpp's own server inside the replica's process. Imported in the replica only; the one module that loads xllamacpp.

A call to the server blocks its thread until the answer has ended and gives each event to a callback; a callback that returns True ends it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from xi_core import machine
from xi_core.engine.base import ApiEngine, ApiRequest, ApiSink, EngineStats, LoadedModel, Progress
from xi_core.engine.info import read_options
from xi_core.errors import ArtifactError, EngineError, EngineNotInstalled, InvalidRequest, Unavailable
from xi_core.wire.manifest import Manifest
from xi_core.wire.plan import LaunchPlan
from xi_plugins.engines.llama_cpp.gguf import Header, read_header
from xi_plugins.engines.llama_cpp.listener import Listener
from xi_plugins.engines.llama_cpp.native import native_log
from xi_plugins.engines.llama_cpp.options import LlamaCppOptions
from xi_plugins.engines.llama_cpp.params import common_params
from xi_plugins.engines.llama_cpp.plugin import INSTALL, MANIFEST, WITHOUT_GRAMMARS
from xi_plugins.engines.llama_cpp.sizing import Size, room, size_for, threads_for
from xi_plugins.engines.llama_cpp.stopping import StopStream
from xi_plugins.engines.llama_cpp.threads import CallThreads
from xi_plugins.engines.llama_cpp.translate import (
    CHAT,
    COMPLETIONS,
    Limits,
    Refusal,
    constraint_of,
    refusal,
    refusal_of,
    to_llama,
    wants_logprobs,
)
from xi_plugins.engines.llama_cpp.unparsed import Again, Shown, is_of_the_parser, unparsed

log = logging.getLogger(__name__)

_PROGRESS = '"prompt_progress":{'
_ERROR = '{"error":'
_CHUNK = 16 * 1024 * 1024
_GPU_SHARE = 0.9
"""Part of the devices' free memory that weights and cache may take; the rest is for computing."""


class LlamaCppEngine(ApiEngine):
    """Runs one GGUF model. See `ApiEngine` for who calls what."""

    def __init__(self) -> None:
        self._server: Any = None
        self._limits = Limits(context_length=0, vocabulary_size=0)
        self._cache_prompt = True
        self._threads = CallThreads(0, "llama")
        self._lock = threading.Lock()
        self._runs: dict[int, Run] = {}
        self._past = EngineStats()

    # ---- life -----------------------------------------------------------------------------------

    def load(self, plan: LaunchPlan, progress: Progress) -> LoadedModel:
        progress("reading the model's header", None)
        library = _library()
        options = read_options("llama.cpp", LlamaCppOptions, plan.options)
        header = read_header(Path(plan.artifact.path))
        memory = room(header, options, *_memory(library, plan))
        size = size_for(header, options, memory, plan.limits.batch_size, on_devices=bool(plan.devices))
        params = common_params(library, plan, options, size, threads_for(header, options, machine.fewer_than_cores()))
        self._adjust(library, params, size)
        _fetch(Path(plan.artifact.path), memory, progress)
        progress("loading weights", None)
        listener = Listener(plan.endpoint)
        try:
            listener.apply(params)
            server = _start(library, params, plan, size)
            listener.wait_for_loop(server.listening_address)
            properties = listener.properties(server.listening_address)
        finally:
            listener.close()
        context = min(size.context_length, properties["default_generation_settings"]["n_ctx"])
        slots = properties["total_slots"]
        self._limits = Limits(context_length=context, vocabulary_size=header.vocabulary_size, stops=tuple(plan.stop))
        self._cache_prompt = options.cache_prompt
        self._threads = CallThreads(slots, "llama")
        self._server = server
        manifest = self._manifest(header, plan, options)
        return LoadedModel(context_length=context, slots=slots, manifest=manifest, sampling=header.sampling)

    def _adjust(self, library: Any, params: Any, size: Size) -> None:
        """Change what another kind of model needs otherwise."""

    def _manifest(self, header: Header, plan: LaunchPlan, options: LlamaCppOptions) -> Manifest:
        return _manifest(header, plan, options)

    def _call(self, server: Any, route: str) -> Any:
        """The server's function for a route."""
        return server.handle_chat_completions if route == CHAT else server.handle_completions

    def check(self) -> None:
        if self._server is None:
            raise EngineError("no model is loaded in llama.cpp, or it was closed")

    def stats(self) -> EngineStats:
        with self._lock:
            runs = list(self._runs.values())
            return EngineStats(
                running=len(runs),
                steps=self._past.steps + sum(run.steps for run in runs),
                tokens=self._past.tokens + sum(run.tokens for run in runs),
            )

    def close(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        server, self._server = self._server, None
        with self._lock:
            for run in self._runs.values():
                run.aborted = True
        if not self._threads.close(max(0.0, deadline - time.monotonic())):
            log.warning("llama.cpp still computes; its memory is freed with the process")
        del server  # the last reference ends llama.cpp's threads

    # ---- requests -------------------------------------------------------------------------------

    def submit(self, request: ApiRequest, sink: ApiSink) -> None:
        server = self._server
        if server is None:
            sink.failed(request.id, Unavailable.status, "the engine is closed", code=Unavailable.code)
            return
        call = self._call(server, request.route)
        run = Run(request, sink)
        with self._lock:
            self._runs[request.id] = run
        self._threads.start(partial(self._serve, run, call))

    def abort(self, id: int) -> None:
        run = self._runs.get(id)
        if run is not None:
            run.aborted = True

    def _serve(self, run: Run, call: Callable[[str, Callable[[str], bool]], None]) -> None:
        """One request, on a thread of its own, to its end."""
        request = run.request
        try:
            self._run(run, call)
        except InvalidRequest as error:
            run.refusal = Refusal(status=400, message=error.message, param=error.param, code=error.code)
        except Exception as error:  # the library raises bare ValueError and RuntimeError; nothing may leave the request open
            run.refusal = refusal_of(error, request.route, constraint_of(request.body))
            if run.refusal.status >= 500:
                log.exception("request %d failed in llama.cpp", request.id)
        del call  # it holds the server, which must be free to go once the request is answered
        with self._lock:
            del self._runs[request.id]
            self._past.steps += run.steps
            self._past.tokens += run.tokens
        if run.refusal is not None and not run.aborted:
            why = run.refusal
            run.sink.failed(request.id, why.status, why.message, why.param, why.code)
        else:
            run.sink.done(request.id)

    def _run(self, run: Run, call: Callable[[str, Callable[[str], bool]], None]) -> None:
        if run.aborted:
            return
        request = run.request
        body = asked = to_llama(request, self._limits, cache_prompt=self._cache_prompt)
        if request.route == CHAT:
            body.setdefault("seed", secrets.randbits(31))  # to ask for the same text again
        take = run.take
        if wants_logprobs(request.body):
            stops = StopStream(body["stop"], chat=request.route == CHAT)
            asked = body | {"stop": [], "timings_per_token": True}
            take = partial(run.take_matched, stops)
        call(msgspec.json.encode(asked).decode(), take)
        if run.unparsed and not run.aborted:
            self._end_unparsed(run, call, body)

    def _end_unparsed(self, run: Run, call: Callable[[str, Callable[[str], bool]], None], body: dict[str, Any]) -> None:
        """The end of an answer whose text llama.cpp's parser could not read."""
        if run.shown.calls():
            events = run.shown.last()
        else:
            again = Again(run.shown)
            run.started = False
            call(msgspec.json.encode(unparsed(body)).decode(), partial(run.take_again, again))
            if run.aborted or run.refusal is not None:
                return
            events = again.events()
        for event in events:
            run.sink.event(run.request.id, event)


class Run:
    """One request while it runs. Only its own thread writes its counters."""

    __slots__ = ("aborted", "refusal", "request", "shown", "sink", "started", "steps", "tokens", "unparsed")

    def __init__(self, request: ApiRequest, sink: ApiSink) -> None:
        self.request = request
        self.sink = sink
        self.aborted = False
        self.started = False
        self.steps = 0
        self.tokens = 0
        self.refusal: Refusal | None = None
        self.shown = Shown()
        """Of a chat."""
        self.unparsed = False
        """Whether llama.cpp's parser could not read the text."""

    def take(self, data: str) -> bool:
        """llama.cpp's callback: pass an event on. True ends the request."""
        if self._passes(data):
            self._show(data)
        return self.aborted

    def take_matched(self, stops: StopStream, data: str) -> bool:
        """As `take`, with the stop strings matched here."""
        if not self._passes(data):
            return self.aborted
        data, ended = stops.feed(data)
        self._show(data)
        return ended or self.aborted

    def take_again(self, again: Again, data: str) -> bool:
        """As `take`, of the second answer in place of one that could not be read."""
        if self._passes(data):
            again.take(data)
        return self.aborted

    def _show(self, data: str) -> None:
        if self.request.route == CHAT:
            self.shown.note(data)
        self.sink.event(self.request.id, data)

    def _passes(self, data: str) -> bool:
        """Count the event; False for progress of the prompt, for an error and once aborted."""
        self.steps += 1
        if self.aborted:
            return False
        if not self.started:
            if _PROGRESS in data:
                return False
            self.started = True
        if data.startswith(_ERROR):
            if self.request.route == CHAT and self.steps > 1 and not self.unparsed and is_of_the_parser(data):
                self.unparsed = True
                return False
            self.refusal = refusal(data, self.request.route, constraint_of(self.request.body))
            return False
        self.tokens += 1
        return True


# ---- loading --------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise EngineNotInstalled(f"the engine llama.cpp needs xllamacpp ({error}); install it with: {INSTALL}") from None
    return xllamacpp


def _memory(library: Any, plan: LaunchPlan) -> tuple[int, int]:
    """Bytes that weights and cache may take: of the devices' free memory, and of what the machine lets this process have."""
    cpu = library.ggml_backend_dev_type.GGML_BACKEND_DEVICE_TYPE_CPU
    found = library.get_device_info()
    free = sum(int(device["memory_free"]) for device in found if device["type"] != cpu) if plan.devices else 0
    own = machine.memory().total or max(int(device["memory_total"]) for device in found if device["type"] == cpu)
    return int(free * _GPU_SHARE), own


def _fetch(path: Path, memory: int, progress: Progress) -> None:
    """Read the file into the system's cache. llama.cpp tells no progress and stops Python's threads while it loads: this shortens that."""
    size = path.stat().st_size
    if size > memory // 2:
        return
    buffer, done = bytearray(_CHUNK), 0
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            done += read
            progress("reading weights", done / size)


def _start(library: Any, params: Any, plan: LaunchPlan, size: Size) -> Any:
    """Load the model; returns when it serves. Raises `ArtifactError`, or `EngineError` where it isn't the file's fault."""
    failed = ""
    with native_log() as said:
        try:
            return library.Server(params)
        except (RuntimeError, ValueError) as error:
            failed = str(error)
            said.wait_for_end()
    reasons = said.reasons()
    log.error("llama.cpp did not start: %s", failed)
    if "alloc" in said.text or "out of memory" in said.text:
        raise EngineError(
            f"not enough memory for {plan.artifact.path} with a context_length of {size.context_length} and {size.slots} slots: {reasons}; "
            "choose fewer slots or a shorter context_length"
        )
    if "failed to create context" in said.text:
        raise EngineError(f"llama.cpp can't run {plan.artifact.path} with these options: {reasons}")
    raise ArtifactError(f"llama.cpp can't load {plan.artifact.path}: {reasons}")


def _manifest(header: Header, plan: LaunchPlan, options: LlamaCppOptions) -> Manifest:
    """Without a chat template llama.cpp would make one up; a model that has none does not chat."""
    chats = header.has_chat_template or plan.chat_template
    endpoints = MANIFEST.endpoints if chats else {COMPLETIONS: MANIFEST.endpoints[COMPLETIONS]}
    if options.grammars:
        return Manifest(endpoints=endpoints)
    return Manifest(endpoints={route: fields | {"structured_outputs": WITHOUT_GRAMMARS} for route, fields in endpoints.items()})
