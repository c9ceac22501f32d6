"""JSON answers of the control routes, from msgspec structs."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request, Response

from xi_core.errors import ErrorBody, PublicError
from xi_server.asgi import retry_after_header
from xi_server.gateway import Gateway

JSON = "application/json"


class ControlError(msgspec.Struct):
    """OpenAI's error envelope, with the message once more as `detail`, where Xinference's clients look for it."""

    error: PublicError
    detail: str


def gateway_of(request: Request) -> Gateway:
    """The gateway that serves this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def json_response(answer: Any, status: int = 200) -> Response:
    """`answer`, a struct or built-ins, as JSON."""
    return Response(msgspec.json.encode(answer), status_code=status, media_type=JSON)


def control_error(error: ErrorBody) -> ControlError:
    """An error as the control API's clients read it."""
    return ControlError(PublicError(message=error.message, type=error.type, param=error.param, code=error.code), error.message)


def error_response(error: ErrorBody) -> Response:
    """An error in the envelope, with `Retry-After` where it has one."""
    response = json_response(control_error(error), error.status)
    for name, value in retry_after_header(error.retry_after):
        response.headers[name.decode()] = value.decode()
    return response
