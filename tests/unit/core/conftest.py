"""A scripted socket for the tests of the client and of the wire below it; and `service_clients.py` can be imported."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


class Wire:
    """Accepts connections one after the other; each gets the next of `answers` as raw bytes (the last one stays), then is closed.

    With `hold` it is kept open instead, until the client leaves, which sets `left`. With `early` no body is read.
    """

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.answers: list[bytes] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.hold = False
        self.early = False
        self.left = threading.Event()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def body(self, index: int = -1):
        return json.loads(self.requests[index][2])

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._thread.join(10)

    @staticmethod
    def http(body, status=200, kind="application/json", headers=""):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{headers}\r\n".encode() + data

    @staticmethod
    def refusal(status, code, message="no", headers=""):
        return Wire.http({"error": {"message": message, "type": "t", "param": "p", "code": code}}, status, headers=headers)

    @staticmethod
    def sse(*chunks, done=True):
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n" * done
        data = text.encode()
        return (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(data), data)
            + b"0\r\n\r\n" * done
        )

    @staticmethod
    def status(state, **fields):
        return Wire.http({"model_uid": "m", "spec": {"model_name": "m"}, "state": state, "created": 1, **fields})

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                connection.settimeout(20)
                self._serve(connection, stream)

    def _serve(self, connection, stream) -> None:
        line = stream.readline().decode().strip()
        headers = {}
        while field := stream.readline().strip():
            name, _, value = field.decode().partition(":")
            headers[name.lower()] = value.strip()
        self.requests.append((line, headers, b"" if self.early else stream.read(int(headers.get("content-length", 0)))))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        connection.sendall(answer)
        if self.hold:
            try:
                gone = stream.read(1) == b""
            except ConnectionError:
                gone = True
            if gone:
                self.left.set()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()
