"""HTTP/1.1 between a client and one server: requests are read whole, asked on, and answered.

`Cut` instead of an `Answer` closes the client's connection in the middle.
"""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

__all__ = ["Answer", "Ask", "Cut", "Relay", "Request"]

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks: `path` is with its query."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """A connection that is closed after so many bytes of an answer's body, or without an answer."""

    answer: Answer | None = None
    size: int = 0


Ask: TypeAlias = Callable[[bytes, bool], Answer]
"""Puts a request to the server with this body; where it is cut, goes away before its end."""


class Relay:
    """Listens at `address`, and lets `serve` answer each request."""

    def __init__(self, upstream: str, serve: Callable[[Request, Ask], Answer | Cut]) -> None:
        self._server = _Server(("127.0.0.1", 0), _handler(upstream, serve))
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> None:
        """Begin to listen."""
        loop = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        loop.start()

    def stop(self) -> None:
        """Listen no more, and close what is open."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for request in tuple(self.open):  # those kept alive
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news here."""


def _handler(
    upstream: str, serve: Callable[[Request, Ask], Answer | Cut]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # with it, the base class answers Expect: 100-continue
        disable_nagle_algorithm = True
        timeout = _TIMEOUT_S

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):
                return self._serve
            raise AttributeError(name)

        def log_message(self, *_: Any) -> None: ...

        def _serve(self) -> None:
            body = _body(self.rfile, self.headers)
            try:
                answer = serve(Request(self.command, self.path, body), self._ask)
            except (OSError, HTTPException):  # the server is not there
                answer = Cut()
            if isinstance(answer, Answer):
                body = b"" if self.command == "HEAD" else answer.body
                self.wfile.write(_head(answer) + body)
                return
            if answer.answer is not None:
                self.wfile.write(_head(answer.answer) + answer.answer.body[: answer.size])
            else:  # a reset, where a close would be an empty answer
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
            self.close_connection = True

        def _ask(self, body: bytes, cut: bool) -> Answer:
            return _ask(upstream, self.command, self.path, self.headers, body, cut=cut)

    return Handler


def _body(stream: Any, headers: "Message[str, str]") -> bytes:
    if not _chunked(headers):
        return bytes(stream.read(int(headers.get("Content-Length", 0))))
    body = b""
    while size := int(stream.readline().partition(b";")[0], 16):
        body += stream.read(size)
        stream.readline()
    while stream.readline().strip():  # trailers
        pass
    return body


def _ask(
    upstream: str, method: str, path: str, headers: "Message[str, str]", body: bytes, *, cut: bool
) -> Answer:
    connection = HTTPConnection(upstream, timeout=_TIMEOUT_S)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders()
        if body:
            chunk = b"%x\r\n%b\r\n" % (len(body), body)
            connection.send(chunk if _chunked(headers) else body)
        if cut:
            return Answer(0, "", (), b"")
        if _chunked(headers):
            connection.send(b"0\r\n\r\n")
        got = connection.getresponse()
        return Answer(got.status, got.reason, tuple(got.getheaders()), got.read())
    finally:
        connection.close()


def _chunked(headers: "Message[str, str]") -> bool:
    return "chunked" in headers.get("Transfer-Encoding", "").lower()


def _head(answer: Answer) -> bytes:
    dropped = {"transfer-encoding", "connection"}
    lines = [f"{name}: {value}" for name, value in answer.headers if name.lower() not in dropped]
    if not any(line.lower().startswith("content-length:") for line in lines):
        lines.append(f"Content-Length: {len(answer.body)}")
    start = f"HTTP/1.1 {answer.status} {answer.reason}"
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")
