"""`ServerWords`: what an engine built on `ChildServerEngine` says of its server.

All but `name`, `command` and `loaded` have a default that a true OpenAI server satisfies. `child_server.py` and `child_calls.py` call it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from msgspec import Struct, field

from xi_core.engine.base import ApiRequest, LoadedModel
from xi_core.engine.child_address import Address
from xi_core.engine.child_refusal import Refusal, refusal_of
from xi_core.engine.child_translate import to_server, to_xi
from xi_core.errors import EngineError, XiError
from xi_core.wire.plan import LaunchPlan

LAST_LINES = 20


class ServerCommand(Struct, kw_only=True):
    """What to run. `env` is set in any case, `defaults` where neither the worker nor the launch (`--env`) has set the variable."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)


class ServerCall(Struct, kw_only=True, frozen=True):
    """Something to ask of the server beside requests. `body` goes as JSON; None: without one."""

    method: str
    path: str
    body: Any = None


class ServerWords(ABC):
    """How one kind of server is started, asked and understood. What is called per request or event runs on the engine's loop."""

    name: ClassVar[str]
    """For messages."""
    unix_socket: ClassVar[bool] = True
    """Whether the server can listen on a Unix socket; a port of loopback where not."""
    health_path: ClassVar[str] = "/health"
    """Answers 200 once the server is ready."""
    metrics_path: ClassVar[str] = "/metrics"
    metrics: ClassVar[Mapping[str, str]] = {}
    """Fields of `EngineCounters`, and the names of the server's metrics (Prometheus' text, at `metrics_path`) that they are; without any it
    is not asked. One of them, or a line (`works`), must move while the server reads a long prompt: until its first token nothing else tells
    that it doesn't hang."""

    @abstractmethod
    def command(self, plan: LaunchPlan, address: Address) -> ServerCommand:
        """The server's command line and environment: to serve `plan.artifact` under the name `plan.uid`, and each of `plan.lora_modules`
        under its own, at `address`, with its key. With `plan.rendezvous` it is that of one rank of several.

        The key goes by environment or by a file of `address.folder`, never by the command line. Raises `UnknownOption`.
        """

    @abstractmethod
    def loaded(self, plan: LaunchPlan, card: dict[str, Any]) -> LoadedModel:
        """What was loaded, once the server is ready; `card` is the server's own entry for it in `GET /v1/models`."""

    def body(self, request: ApiRequest) -> dict[str, Any]:
        """The request's body in the server's words, but for `model` and `stream`, which are added. Raises `InvalidRequest`."""
        return to_server(request)

    def second_body(self, request: ApiRequest, data: bytes) -> dict[str, Any] | None:
        """A body to try once more with, where the server has refused the first with the error `data`; None where its word is final."""
        return None

    def event(self, request: ApiRequest, data: bytes) -> bytes:
        """One event of the answer as the serving layer reads it. Called per token: look before you decode."""
        return to_xi(data)

    def ended(self, request: ApiRequest) -> None:
        """The request is over, however it went, and no event of it comes any more. For what `event` keeps of one."""
        return

    def refusal(self, request: ApiRequest, status: int, data: bytes) -> Refusal:
        """The server's error in xi's words. `status` is that of the answer; an error in a stream brings its own."""
        return refusal_of(self.name, request, status, data)

    def sleep_calls(self, level: int) -> list[ServerCall]:
        """What puts the server to sleep, one call after the other, where `LoadedModel.sleep` says that it can."""
        return []

    def wake_calls(self, level: int) -> list[ServerCall]:
        """What wakes it from that level."""
        return []

    def stage(self, line: str) -> tuple[str, float | None] | None:
        """The stage of loading that a line of the server's output tells of, and its share that is done."""
        return None

    def joined(self, line: str) -> bool:
        """Whether a line of a follower's output tells that it has begun its work. Not needed where it answers `health_path`."""
        return False

    def works(self, line: str) -> bool:
        """Whether a line of the server's output tells that it has got on with its work, as each part of a long prompt does."""
        return False

    def failed_start(self, how: str, lines: list[str]) -> XiError:
        """Why the server ended before it was ready: `how` in words, `lines` its last output."""
        return EngineError(f"the server of engine {self.name} {how} while it started; {last_lines(lines)}")


def last_lines(lines: list[str]) -> str:
    """The end of a server's output, for messages."""
    found = [line for line in lines if line.strip()][-LAST_LINES:]
    return "its last lines:\n" + "\n".join(found) if found else "it has written nothing"
