"""The gateway's ASGI application, from the outside in: CORS where it is asked for, auth, the front, then the token path or FastAPI.

FastAPI routes the control API and carries the documents; it never sees a request of the token path.
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from xi_core import __version__
from xi_core.access import allowed_origins
from xi_core.errors import ErrorBody, InvalidRequest, XiError
from xi_server.asgi import App, ClientGone, Message, Receive, Scope, Send, new_request_id, send_error
from xi_server.auth import BearerAuth
from xi_server.cors import Cors
from xi_server.dispatch import TOKEN_PATHS
from xi_server.gateway import Gateway
from xi_server.origin import OriginGuard
from xi_server.routes import cache, cluster, engines, health, models, registrations, sleeping, workers
from xi_server.routes.answers import error_response

log = logging.getLogger(__name__)

SUMMARY = "Launch and serve language models. The inference API is OpenAI's; launching is under /v1/models."


def create_app(gateway: Gateway) -> App:
    """The whole application over `gateway`. Raises `ConfigError` for origins that can't be."""
    front, key = Front(gateway, control_app(gateway)), gateway.settings.api_key
    origins = allowed_origins(gateway.settings.allow_origins, key)
    door, status = (BearerAuth(front, key), "401") if key else (OriginGuard(front, origins), "403")
    text = "Requests turned away at the door: without the key (401), or from a web page of another site (403)."
    gateway.metrics.observe("counter", "xi_requests_denied_total", text, ("status",), lambda: [((status,), door.denied)])
    return Cors(door, origins) if origins else door


class Front:
    """Raw ASGI: gives the token path to the dispatcher and the rest to FastAPI, with a request id and a count on every answer."""

    def __init__(self, gateway: Gateway, control: FastAPI) -> None:
        self._gateway = gateway
        self._dispatch = gateway.dispatcher
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._control(scope, receive, send)
        elif scope["path"] not in TOKEN_PATHS:
            await self._pass_on(scope, receive, send)
        elif scope["method"] == "POST":
            await self._dispatch(scope, receive, send)
        else:
            error = _http_error(405, f"{scope['path']} takes POST only")
            await send_error(send, error, new_request_id(), [(b"allow", b"POST")])

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id, status = new_request_id(), 500
        if scope["method"] == "HEAD":  # as GET; the server beneath, which has its own scope, sends the head alone
            scope = {**scope, "method": "GET"}
        scope["xi.request_id"] = request_id

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._control(scope, receive, tagged)
        except Exception as error:
            # FastAPI has answered already (`_unexpected`) and raises once more for the server's log, where it stands by now.
            if not scope.get("xi.logged"):
                log.error("request %s failed after its answer had begun", request_id, exc_info=error)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._gateway.metrics.requests.add(route, "", str(status))


def control_app(gateway: Gateway) -> FastAPI:
    """FastAPI with every route but those of the token path. `/docs` loads its script from a CDN; `/openapi.json` needs none."""
    app = FastAPI(title="xi", version=__version__, summary=SUMMARY, redoc_url=None, redirect_slashes=False)
    app.state.gateway = gateway
    for module in (engines, models, sleeping, registrations, cache, cluster, workers, health):
        app.include_router(module.router)
    app.add_exception_handler(XiError, _xi_error)
    app.add_exception_handler(ClientGone, _nobody_there)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _invalid_query)
    app.add_exception_handler(Exception, _unexpected)
    _document(app)
    return app


def _document(app: FastAPI) -> None:
    """Have `/openapi.json` made when it is first asked for: the schemas cost memory that most gateways never need."""
    plain = app.openapi

    def openapi() -> dict[str, object]:
        if app.openapi_schema is None:
            from xi_server.openapi import completed

            app.openapi_schema = completed(plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


async def _xi_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, XiError):
        raise error
    return error_response(error.body())


async def _nobody_there(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # goes nowhere


async def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    message, path = error.detail, request.scope["path"]  # not request.url, which is made from the Host header
    if error.status_code == 404:
        message = f"there is no {path} here; /docs lists what there is"
    elif error.status_code == 405:
        message = f"{path} does not take {request.method}"
    response = error_response(_http_error(error.status_code, message))
    response.headers.update(error.headers or {})
    return response


async def _invalid_query(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    param = str(first["loc"][-1])
    return error_response(InvalidRequest(f"{param}: {first['msg']}", param=param).body())


async def _unexpected(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("xi.request_id", "")
    request.scope["xi.logged"] = True
    log.error("request %s failed: %s %s", request_id, request.method, request.scope["path"], exc_info=error)
    return error_response(XiError(f"internal error; the server's log has it under {request_id}").body())


def _http_error(status: int, message: str) -> ErrorBody:
    """An error of HTTP itself, in the shape of ours."""
    code = HTTPStatus(status).phrase.lower().replace(" ", "_").replace("'", "")
    return ErrorBody(message=message, type="invalid_request_error" if status < 500 else "server_error", code=code, status=status)
