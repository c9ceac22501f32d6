"""The HTTP parser of uvicorn's protocol, made to decline upgrades: the request goes on as plain HTTP/1.1 (RFC 9110, section 7.8).

Java's own client asks for `h2c` with each request to an http:// address, as `curl --http2` does. httptools stops at the end of such a head,
upon which uvicorn calls the application with an empty body and reads nothing more of the connection.
"""

from __future__ import annotations

from typing import Any

from httptools import HttpParserUpgrade, HttpRequestParser

FRAMING = (b"content-length", b"transfer-encoding")


class PlainParser(HttpRequestParser):
    """Feeds `protocol`, whose `parser` it is. Where a request asks for an upgrade, another takes its place and reads on behind the head."""

    def __init__(self, protocol: Any, callbacks: Any = None) -> None:
        super().__init__(callbacks or protocol)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn
        self._protocol = protocol

    def feed_data(self, data: Any) -> None:
        parser, rest = self, self._behind_upgrade(data)
        while rest is not None:  # no recursion: a packet may hold any number of such requests
            protocol = parser._protocol
            protocol.cycle.more_body = True  # httptools has told it that the head is all
            parser = protocol.parser = PlainParser(protocol, _Rest(protocol))
            rest = parser._behind_upgrade(_head(protocol.headers) + rest)

    def _behind_upgrade(self, data: Any) -> bytes | None:
        """What follows a head that asks for an upgrade, which is where this parser's work ends; None where there is none."""
        try:
            super().feed_data(data)
        except HttpParserUpgrade as upgrade:
            return bytes(data)[upgrade.args[0] :]
        return None


def _head(headers: list[tuple[bytes, bytes]]) -> bytes:
    """As much of the head as says how long the body is."""
    kept = b"".join(b"%b: %b\r\n" % (name, value) for name, value in headers if name in FRAMING)
    return b"POST / HTTP/1.1\r\n" + kept + b"\r\n"


class _Rest:
    """The callbacks of a parser that begins within a request: all but those for the first head, which the protocol has seen."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._begun = False
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self._begun:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._begun:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._begun:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._begun:
            self._protocol.on_headers_complete()
        self._begun = True
