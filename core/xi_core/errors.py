"""The one tree of errors, and the envelope in which an error crosses a process border or leaves by HTTP.

    XiError
    ├── InvalidRequest            400  the caller sent something wrong; `param` names the field
    │   ├── UnsupportedField      400  a valid field that this engine can't honour
    │   └── ContextLengthExceeded 400  the prompt doesn't fit
    ├── AuthenticationFailed      401  no key, or a wrong one
    ├── Forbidden                 403  asked from where nobody may ask
    ├── NotFound                  404
    │   ├── ModelNotFound         404  no launch of that uid
    │   └── WorkerNotFound        404  no worker of that name
    ├── Conflict                  409  the uid is taken by another launch spec
    ├── PayloadTooLarge           413
    ├── Overloaded                429  a bounded queue is full; `retry_after` says when to come back
    ├── EngineError               500  the engine failed while it served
    ├── ReplicaLost               502  the replica died or fell silent
    ├── Unavailable               503  nothing ready to serve it now
    │   └── ModelAsleep           503  the model was put to sleep, until somebody wakes it
    ├── DeadlineExceeded          504
    ├── LaunchError               400  a launch that can't be carried out
    │   ├── UnknownModel          400  no family, directory or file of that name
    │   ├── UnknownEngine         400
    │   ├── UnknownOption         400  an option that the engine doesn't know
    │   ├── EngineNotInstalled    400  with the pip line
    │   ├── NoPlacement           409  no devices that would do, with the reason for each
    │   ├── ArtifactError         400  weights missing, unreadable or damaged
    │   ├── EnvironmentFailed     400  the model's own environment could not be built
    │   ├── LaunchFailed          500  the replica could not be brought up
    │   └── LaunchCancelled       409  terminated before it was ready
    ├── ConfigError                    a setting with a value that can't be
    ├── PluginError                    a plugin that can't be loaded or breaks the contract
    └── TransportError                 a channel is broken or spoke another protocol
        ├── ChannelClosed
        ├── ChannelFull
        ├── ChannelRefused             the other side doesn't let this one in
        └── ProtocolMismatch

`code` is stable and machine-readable; `status` is the HTTP status; messages say what to do.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec


class ErrorBody(msgspec.Struct, kw_only=True):
    """An error as data: OpenAI's error object, plus the HTTP status and `retry_after` in seconds."""

    message: str
    type: str = "server_error"
    param: str | None = None
    code: str | None = None
    status: int = 500
    retry_after: float | None = None


class Envelope(msgspec.Struct):
    """OpenAI's error envelope: what a client reads as the body of a failed request."""

    error: PublicError


class PublicError(msgspec.Struct, kw_only=True):
    """The four fields of OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class XiError(Exception):
    """Base of every error that xi raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def body(self) -> ErrorBody:
        """This error as data, to be sent over a channel."""
        return ErrorBody(
            message=self.message,
            type=self.type,
            param=self.param,
            code=self.code,
            status=self.status,
            retry_after=self.retry_after,
        )

    @staticmethod
    def from_body(body: ErrorBody) -> XiError:
        """The error that `body` describes, of the class that has its code (`RemoteError` for an unknown code)."""
        cls = _by_code(XiError).get(body.code or "")
        if cls is None:
            return RemoteError(body)
        return cls(body.message, param=body.param, retry_after=body.retry_after)


class RemoteError(XiError):
    """An error from another process whose code this version doesn't know."""

    code = "remote_error"

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message, param=body.param, retry_after=body.retry_after)
        self.remote = body

    def body(self) -> ErrorBody:
        return self.remote


def _by_code(root: type[XiError]) -> dict[str, type[XiError]]:
    found = {root.code: root}
    for cls in root.__subclasses__():
        if cls is not RemoteError:
            found.update(_by_code(cls))
    return found


def envelope(body: ErrorBody) -> bytes:
    """`body` as the JSON of OpenAI's error envelope."""
    public = PublicError(message=body.message, type=body.type, param=body.param, code=body.code)
    return msgspec.json.encode(Envelope(public))


class InvalidRequest(XiError):
    """The request is wrong; `param` names the field."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class UnsupportedField(InvalidRequest):
    """A field that is right by the API but that this engine can't honour."""

    code = "unsupported_field"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt with max_tokens, is longer than the model's context."""

    code = "context_length_exceeded"


class AuthenticationFailed(XiError):
    """No API key, or a wrong one."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class Forbidden(XiError):
    """The request comes from where none is taken, such as a web page of another site."""

    status = 403
    code = "forbidden"
    type = "permission_error"


class NotFound(XiError):
    """There is no such thing."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No launch has this uid."""

    code = "model_not_found"


class WorkerNotFound(NotFound):
    """No worker has this name."""

    code = "worker_not_found"


class Conflict(XiError):
    """The uid is taken by a launch with another spec."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class PayloadTooLarge(XiError):
    """The request body is over the limit."""

    status = 413
    code = "payload_too_large"
    type = "invalid_request_error"


class Overloaded(XiError):
    """A bounded queue is full."""

    status = 429
    code = "overloaded"
    type = "rate_limit_error"


class EngineError(XiError):
    """The engine failed while it served this request."""

    code = "engine_error"


class ReplicaLost(XiError):
    """The replica that served this request died or fell silent."""

    status = 502
    code = "replica_lost"


class Unavailable(XiError):
    """Nothing can serve this request now; trying again later may help."""

    status = 503
    code = "unavailable"


class ModelAsleep(Unavailable):
    """The model was put to sleep: it serves again once somebody wakes it."""

    code = "model_asleep"


class DeadlineExceeded(XiError):
    """It took longer than it may."""

    status = 504
    code = "deadline_exceeded"


class LaunchError(XiError):
    """A launch that can't be carried out as asked."""

    status = 400
    code = "launch_error"
    type = "invalid_request_error"


class UnknownModel(LaunchError):
    """No family, directory or file has this name."""

    code = "unknown_model"


class UnknownEngine(LaunchError):
    """No installed plugin offers this engine."""

    code = "unknown_engine"


class UnknownOption(LaunchError):
    """An option that the engine doesn't know, or with a value that it can't take."""

    code = "unknown_option"


class EngineNotInstalled(LaunchError):
    """The engine is known but its library is not installed, or can't run on this machine."""

    code = "engine_not_installed"


class NoPlacement(LaunchError):
    """No devices satisfy the launch; the message gives the reason for each candidate."""

    status = 409
    code = "no_placement"


class ArtifactError(LaunchError):
    """Weights are missing, unreadable or damaged."""

    code = "artifact_error"


class EnvironmentFailed(LaunchError):
    """The model's own environment could not be built."""

    code = "environment_failed"


class LaunchFailed(LaunchError):
    """A replica could not be brought up; the message holds the reason."""

    status = 500
    code = "launch_failed"
    type = "server_error"


class LaunchCancelled(LaunchError):
    """The launch was terminated before it was ready."""

    status = 409
    code = "launch_cancelled"


class ConfigError(XiError):
    """A setting has a value that can't be."""

    code = "config_error"


class PluginError(XiError):
    """A plugin can't be loaded or breaks the contract."""

    code = "plugin_error"


class TransportError(XiError):
    """A channel failed."""

    code = "transport_error"


class ChannelClosed(TransportError):
    """The other side is gone."""

    code = "channel_closed"


class ChannelFull(TransportError):
    """The other side doesn't read; nothing was sent."""

    code = "channel_full"


class ChannelRefused(TransportError):
    """The other side does not let this one in: it doesn't know its key."""

    code = "channel_refused"


class ProtocolMismatch(TransportError):
    """The other side speaks another protocol version, or not this protocol at all."""

    code = "protocol_mismatch"
