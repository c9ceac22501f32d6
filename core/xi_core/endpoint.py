"""A running xi as seen over HTTP: one request and its answer, over the standard library. Called by `xi_core.client`.

Here are connecting, sending, reading bodies and streams of events, and turning refusals, breaks and strangers' answers into errors of the
tree. Each request has a connection of its own, so that an endpoint may be shared between threads and no idle connection goes stale.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from xi_core.api.body import encode_body
from xi_core.errors import ChannelClosed, ConfigError, DeadlineExceeded, ErrorBody, ProtocolMismatch, Unavailable, XiError

CONNECT_TIMEOUT = 5.0

T = TypeVar("T")


class _Answer(NamedTuple):
    """A response whose head is read. Closing only one of the two would leave the socket open, and the server at work."""

    connection: HTTPConnection
    response: HTTPResponse

    def close(self) -> None:
        self.response.close()
        self.connection.close()


class Endpoint:
    """The xi server at `url` (`http://host:port`, with or without `/v1`). Raises `ConfigError` if the URL or the key can't be one.

    Its methods raise the server's own error by its class, `Unavailable` if nobody answers, or only a proxy, `ProtocolMismatch` if something
    answers that isn't xi, `ChannelClosed` if an answer breaks off, `DeadlineExceeded` after `timeout` seconds of silence, and
    `InvalidRequest` for text and numbers that no JSON can carry.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._secure, self._host, self._port, self._prefix = _parsed(self.url)
        self._headers = {"Accept": "application/json, text/event-stream", "User-Agent": "xi-client", "Connection": "close"}
        if api_key:
            if not (api_key.isascii() and api_key.isprintable()):
                raise ConfigError("the API key holds characters that can't stand in a header; use printable ASCII", param="api_key")
            self._headers["Authorization"] = f"Bearer {api_key}"

    def call(self, wanted: type[T], method: str, path: str, body: Any, timeout: float) -> T:
        """Send a request and decode its answer as `wanted`. `body`: what JSON can carry, or None."""
        with closing(self._open(method, path, body, timeout)) as answer:
            try:
                return msgspec.json.decode(answer.response.read() or b"null", type=wanted)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise _not_xi(self.url, answer.response, str(error)) from None
            except (OSError, HTTPException) as error:
                raise _cut(self.url, error) from None

    def stream(self, wanted: type[T], path: str, body: Any, timeout: float) -> Generator[T, None, None]:
        """Open a stream at once, so that errors come here, and return the generator of its events. Closing it closes the connection."""
        answer = self._open("POST", path, body, timeout)
        if not (answer.response.getheader("Content-Type") or "").startswith("text/event-stream"):
            answer.close()
            raise _not_xi(self.url, answer.response, "it doesn't stream")
        return self._events(wanted, answer)

    def status(self, path: str, timeout: float) -> int:
        """The status of the answer to a GET, whatever it is."""
        with closing(self._send("GET", path, None, timeout)) as answer:
            return answer.response.status

    def reachable(self) -> bool:
        """Whether something accepts connections here; False only where they are refused."""
        connection = self._connection()
        try:
            connection.connect()
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # another trouble, which a request will name
        finally:
            connection.close()
        return True

    def _events(self, wanted: type[T], answer: _Answer) -> Generator[T, None, None]:
        decode = msgspec.json.Decoder(wanted).decode
        try:
            for line in answer.response:
                name, _, data = line.strip().partition(b":")
                if name != b"data":
                    continue
                if data.strip() == b"[DONE]":
                    return
                yield decode(data)
        except (OSError, HTTPException) as error:
            raise _cut(self.url, error) from None
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise _not_xi(self.url, answer.response, str(error)) from None
        finally:
            answer.close()
        raise ChannelClosed(f"{self.url} closed the connection in the middle of its answer; ask again")

    def _open(self, method: str, path: str, body: Any, timeout: float) -> _Answer:
        """Send a request; the response has status 2xx. The caller closes the answer."""
        answer = self._send(method, path, body, timeout)
        if 200 <= answer.response.status < 300:
            return answer
        with closing(answer):
            raise _refusal(self.url, answer.response)

    def _send(self, method: str, path: str, body: Any, timeout: float) -> _Answer:
        data = None if body is None else encode_body(body)
        connection = self._connection()
        try:
            self._connect(connection)
            connection.sock.settimeout(timeout)
            headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have refused what it hadn't read yet: its answer says why
                connection.request(method, self._prefix + path, data, headers)
            return _Answer(connection, connection.getresponse())
        except (OSError, HTTPException) as error:
            connection.close()
            raise _cut(self.url, error) from None
        except BaseException:
            connection.close()
            raise

    def _connection(self) -> HTTPConnection:
        return (HTTPSConnection if self._secure else HTTPConnection)(self._host, self._port, timeout=CONNECT_TIMEOUT)

    def _connect(self, connection: HTTPConnection) -> None:
        try:
            connection.connect()
        except OSError as error:
            why = "" if isinstance(error, ConnectionRefusedError) else f" ({error.strerror or error})"
            raise Unavailable(
                f"no xi server answers at {self.url}{why}: start one with `xi serve`, or name another with -e/--endpoint or XI_ENDPOINT"
            ) from None


def _parsed(endpoint: str) -> tuple[bool, str, int | None, str]:
    """Whether it is https, host, port and path of an endpoint."""
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError as error:
        raise ConfigError(f"endpoint '{endpoint}': {error}; write it like http://127.0.0.1:9997", param="endpoint") from None
    if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment or not endpoint.isascii():
        raise ConfigError(f"endpoint '{endpoint}' is no address of a server; write it like http://127.0.0.1:9997", param="endpoint")
    return url.scheme == "https", url.hostname, port, url.path.rstrip("/")


class _Failure(Struct):
    error: ErrorBody


def _refusal(endpoint: str, response: HTTPResponse) -> XiError:
    """The error that a response of another status than 2xx carries."""
    after = response.getheader("Retry-After") or ""
    retry_after = float(after) if after.isdigit() else None
    try:
        body = msgspec.json.decode(response.read(), type=_Failure).error
    except (msgspec.DecodeError, msgspec.ValidationError, OSError, HTTPException):
        return _of_a_proxy(endpoint, response.status, retry_after) or _not_xi(endpoint, response, "its error isn't in OpenAI's envelope")
    body.status, body.retry_after = response.status, retry_after
    return XiError.from_body(body)


def _of_a_proxy(endpoint: str, status: int, retry_after: float | None) -> XiError | None:
    """The error where a proxy has answered in xi's place, as far as the status tells; None otherwise."""
    told = f"{endpoint} answers {status} and not as xi does"
    if status in (502, 503):
        return Unavailable(f"{told}: a proxy before an xi that is away, or another service?", retry_after=retry_after)
    if status == 504:
        return DeadlineExceeded(f"{told}: a proxy before xi, it seems, waited no longer; let it wait longer, or ask for less")
    return None


def _not_xi(endpoint: str, response: HTTPResponse, detail: str) -> ProtocolMismatch:
    kind = response.getheader("Content-Type") or "no content type"
    return ProtocolMismatch(
        f"{endpoint} answers, but not as xi does (HTTP {response.status}, {kind}; {detail}): "
        f"is it another service, or another version of xi? Name xi's endpoint with -e/--endpoint or XI_ENDPOINT"
    )


def _cut(endpoint: str, error: OSError | HTTPException) -> XiError:
    if isinstance(error, TimeoutError):
        return DeadlineExceeded(f"{endpoint} did not answer in time; its log says what it is busy with")
    if isinstance(error, HTTPException) and not isinstance(error, OSError | IncompleteRead):
        return ProtocolMismatch(f"{endpoint} does not speak HTTP as xi does ({type(error).__name__}): is it another service?")
    return ChannelClosed(f"{endpoint} closed the connection before its answer was complete ({error}); is xi being stopped?")
