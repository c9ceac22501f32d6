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
    ├── Conflict                  409  it clashes with what there is, such as a uid that is taken
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

`code` is stable and machine-readable; `status` is the HTTP status; messages say what to do. Each class's docstring says what it means and
what helps, and after `Retry:` whether sending the same again does: `docs/reference/errors.md` is made from them.
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
    """Base of every error that xi raises on purpose. As itself, `internal_error`: a fault of xi, which the server's log has under the
    request's id; report it with that part of the log. Retry: no."""

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
    """An error from another process whose code this version doesn't know; it is passed on with its own code and status. Run the same
    version of xi in every process. Retry: as its status says: a 429 or 503 later, others not."""

    code = "remote_error"

    def __init__(self, body: ErrorBody) -> None:
        super().__init__(body.message, param=body.param, retry_after=body.retry_after)
        self.remote = body

    def body(self) -> ErrorBody:
        return self.remote


def _by_code(root: type[XiError]) -> dict[str, type[XiError]]:
    found = {root.code: root} if "code" in vars(root) else {}  # a kind of an error that has none of its own crosses as that error
    for cls in root.__subclasses__():
        if cls is not RemoteError:
            found.update(_by_code(cls))
    return found


def envelope(body: ErrorBody) -> bytes:
    """`body` as the JSON of OpenAI's error envelope."""
    public = PublicError(message=body.message, type=body.type, param=body.param, code=body.code)
    return msgspec.json.encode(Envelope(public))


class InvalidRequest(XiError):
    """The request is wrong; `param` names the field. Mend it as the message says. Retry: no, not as it stands."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class UnsupportedField(InvalidRequest):
    """A field that is right by the API but that this engine can't honour. Leave it out, or launch the model with an engine that honours it:
    docs/reference/capabilities.md. Retry: no, not as it stands."""

    code = "unsupported_field"


class ContextLengthExceeded(InvalidRequest):
    """The prompt, or the prompt with max_tokens, is longer than the model's context. Send a shorter one, ask for fewer tokens, or launch
    the model with a longer context. Retry: no, not as it stands."""

    code = "context_length_exceeded"


class AuthenticationFailed(XiError):
    """No API key, or a wrong one. Send `Authorization: Bearer KEY`; commands take the key from -ak/--api-key or `XI_API_KEY`. Retry: no,
    not without the key."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class Forbidden(XiError):
    """The request comes from where none is taken: a web page of another site (list it in `XI_ALLOW_ORIGINS`), another machine where no API
    key is set, or a member whose key or join token is not known (any more; `xi join-token` makes another). Retry: no, not from there."""

    status = 403
    code = "forbidden"
    type = "permission_error"


class NotFound(XiError):
    """There is no such thing: a route, a download, a registered model, a member. The message says what there is. Retry: no, not under this
    name."""

    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No launch has this uid. Launch it with `xi launch`, or name one that the message lists. Retry: no, not before it is launched."""

    code = "model_not_found"


class WorkerNotFound(NotFound):
    """No worker has this name. `xi cluster` lists those that there are. Retry: no, not before it has joined."""

    code = "worker_not_found"


class Conflict(XiError):
    """It clashes with what there is: a uid of a launch with another spec, a name that is taken, a file or environment in use. The message
    says with what; choose another, or end that first. Retry: only where the message says so."""

    status = 409
    code = "conflict"
    type = "invalid_request_error"


class PayloadTooLarge(XiError):
    """The request body is over the limit. Send less, or raise `XI_MAX_BODY` on the server. Retry: no, not as it stands."""

    status = 413
    code = "payload_too_large"
    type = "invalid_request_error"


class Overloaded(XiError):
    """A bounded queue is full. Send less at once, launch more replicas (`xi scale`), or raise `XI_QUEUE_SIZE`. Retry: yes, after the
    seconds of `Retry-After`."""

    status = 429
    code = "overloaded"
    type = "rate_limit_error"


class EngineError(XiError):
    """The engine failed while it served this request. The message and the replica's log (`xi logs`) tell why; an engine that can't go on is
    started again by itself. Retry: once; if it fails again, the request or the model is the cause."""

    code = "engine_error"


class ReplicaLost(XiError):
    """The replica that served this request died, fell silent or had no room for it, and no other took it over. One that died is started
    again by itself; `xi logs` tells why it ended. Retry: yes, after the seconds of `Retry-After`."""

    status = 502
    code = "replica_lost"


class Unavailable(XiError):
    """Nothing can serve this request now: the model still loads or stops, no replica or no supervisor answers. `xi list` and `/ready` tell
    more. Where a launch or another change was asked for, look whether it was done before asking again. Retry: yes, after the seconds of
    `Retry-After`."""

    status = 503
    code = "unavailable"


class ModelAsleep(Unavailable):
    """The model was put to sleep: it serves again once somebody wakes it, by `xi wake` or `POST /v1/models/{uid}/wake`. Retry: no, not
    before it is woken."""

    code = "model_asleep"


class DeadlineExceeded(XiError):
    """It took longer than it may; of a request: no token came within `XI_REQUEST_TIMEOUT`. Send fewer at once, or launch more replicas.
    Retry: yes, later."""

    status = 504
    code = "deadline_exceeded"


class LaunchError(XiError):
    """A launch that can't be carried out as asked. The message says what to change. Retry: no, not as it stands."""

    status = 400
    code = "launch_error"
    type = "invalid_request_error"


class UnknownModel(LaunchError):
    """No family, directory or file has this name. `xi registrations` lists the names; paths are those of the workers' machines. Retry: no,
    not under this name."""

    code = "unknown_model"


class UnknownEngine(LaunchError):
    """No installed plugin offers this engine. `xi engines` lists those that there are. Retry: no, not before it is installed."""

    code = "unknown_engine"


class UnknownOption(LaunchError):
    """An option that the engine doesn't know, or with a value that it can't take; the message names it. `xi launch --help` says how options
    are given. Retry: no, not as it stands."""

    code = "unknown_option"


class EngineNotInstalled(LaunchError):
    """The engine is known but its library is not installed, or can't run on this machine. The message holds the pip line, or the reason.
    Retry: no, not before it is installed."""

    code = "engine_not_installed"


class NoPlacement(LaunchError):
    """No devices satisfy the launch; the message gives the reason for each candidate. Free some, ask for fewer, or launch a smaller format;
    `xi launch --explain` tries it out. Retry: once devices are free."""

    status = 409
    code = "no_placement"


class ArtifactError(LaunchError):
    """Weights are missing, unreadable or damaged, could not be downloaded, or the disk is full. The message names the file or the source.
    Retry: once that is mended; what came of a download is kept."""

    code = "artifact_error"


class EnvironmentFailed(LaunchError):
    """The model's own environment could not be built. The message holds the last lines of the installer: mend the packages that it names.
    Retry: once that is mended."""

    code = "environment_failed"


class LaunchFailed(LaunchError):
    """A replica could not be brought up; the message holds the reason, and its log (`xi logs`) the rest. Retry: once the reason is
    mended."""

    status = 500
    code = "launch_failed"
    type = "server_error"


class LaunchCancelled(LaunchError):
    """The launch was terminated before it was ready, by somebody's `xi terminate`; or a download was stopped. Retry: only if it is still
    wanted."""

    status = 409
    code = "launch_cancelled"


class ConfigError(XiError):
    """A setting has a value that can't be; `param` names it. Set it right and start the process again: docs/reference/settings.md. Retry:
    no, not before it is set right."""

    code = "config_error"


class PluginError(XiError):
    """A plugin can't be loaded or breaks the contract. `xi plugins -v` shows where; mend or remove it, or block it by `XI_PLUGINS`. Retry:
    no, not before it is mended."""

    code = "plugin_error"


class TransportError(XiError):
    """A channel between processes failed. The message names the endpoint; look whether the process there runs and can be reached. Retry:
    yes, once it can be reached."""

    code = "transport_error"


class ChannelClosed(TransportError):
    """The other side is gone, in the middle of an answer or before it. Look whether it runs; its log says why it ended. Retry: yes, once it
    runs; what changes something may have been done already."""

    code = "channel_closed"


class ChannelFull(TransportError):
    """The other side doesn't read; nothing was sent. It is overloaded or stands still: its log says more. Retry: yes, in a moment."""

    code = "channel_full"


class ChannelRefused(TransportError):
    """The other side does not let this one in: it doesn't know its key. Join again with a new token: `xi join-token`. Retry: no, not before
    it has joined."""

    code = "channel_refused"


class ProtocolMismatch(TransportError):
    """The other side speaks another protocol version, or not this protocol at all. Run the same version of xi in every process, and name
    xi's own endpoint. Retry: no, not with this version or endpoint."""

    code = "protocol_mismatch"
