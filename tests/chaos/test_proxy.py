"""The proxy changes nothing by itself, and does to a request what its faults say."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chaos.proxy import Fault, Kind, Proxy

BODY = b"0123456789" * 20


class Echo(BaseHTTPRequestHandler):
    """Answers with what it got; a listing with how many requests there were before."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        listing = "list-type=2" in self.path
        self.seen.append((self.command, self.headers["Host"], body))
        answer = str(len(self.seen)).encode() if listing else body or BODY
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_PUT = do_POST = do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def echo() -> Iterator[type[Echo]]:
    handler = type("Handler", (Echo,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        handler.address = f"127.0.0.1:{server.server_address[1]}"
        yield handler
        server.shutdown()


@pytest.fixture
def proxy(echo) -> Iterator[Proxy]:
    with Proxy(echo.address, seed=3) as proxy:
        yield proxy


def ask(proxy: Proxy, method: str = "GET", path: str = "/x?y=1", **options) -> tuple[int, bytes]:
    connection = HTTPConnection(proxy.address, timeout=10)
    try:
        connection.request(method, path, **options)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_proxy__passes_what_it_is_given(proxy, echo):
    assert ask(proxy) == (200, BODY)
    assert ask(proxy, "PUT", body=b"one") == (200, b"one")
    assert ask(proxy, "PUT", body=iter([b"one", b"two"]), encode_chunked=True) == (200, b"onetwo")
    assert ask(proxy, "PUT", body=b"one", headers={"Expect": "100-continue"}) == (200, b"one")
    assert ask(proxy, "HEAD") == (200, b"")
    assert {host for _, host, _ in echo.seen} == {proxy.address}
    assert proxy.counts == {"passed": 5}


def test_proxy__keeps_a_connection(proxy):
    connection = HTTPConnection(proxy.address, timeout=10)
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, "/")
        assert connection.getresponse().read() == (b"" if method == "HEAD" else BODY)
    proxy.faults = [Fault("error", status=418)]
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (418, b"")
    proxy.faults = []
    connection.request("GET", "/")
    assert connection.getresponse().read() == BODY
    connection.close()


@pytest.mark.parametrize(
    ("kind", "arrives"),
    [("refuse", 0), ("cut upload", 0), ("lose", 1), ("cut download", 1)],
)
def test_proxy__breaks_connections(proxy, echo, kind: Kind, arrives):
    proxy.faults = [Fault(kind, times=1)]
    with pytest.raises((HTTPException, OSError)):
        ask(proxy, "PUT", body=BODY)
    assert len([body for _, _, body in echo.seen if body == BODY]) == arrives
    assert ask(proxy, "PUT", body=BODY) == (200, BODY)
    assert proxy.counts == {kind: 1, "passed": 1}


@pytest.mark.parametrize(("kind", "arrives"), [("flip upload", False), ("flip download", True)])
def test_proxy__flips_one_bit(proxy, echo, kind: Kind, arrives):
    proxy.faults = [Fault(kind)]
    status, body = ask(proxy, "PUT", body=BODY)
    assert status == 200
    assert sum((a ^ b).bit_count() for a, b in zip(body, BODY, strict=True)) == 1
    assert (echo.seen[0][2] == BODY) == arrives
    assert ask(proxy, "HEAD") == (200, b"")


def test_proxy__answers_itself(proxy, echo):
    proxy.faults = [Fault("error", times=1), Fault("garbage", body=b"<html/>")]
    assert ask(proxy)[0] == 503
    assert ask(proxy) == (200, b"<html/>")
    proxy.faults = [Fault("garbage")]
    assert ask(proxy) != ask(proxy)
    assert echo.seen == []


def test_proxy__delays_until_it_ends(echo):
    with Proxy(echo.address) as proxy:
        proxy.faults = [Fault("delay", seconds=0.2), Fault("error")]
        began = time.monotonic()
        assert ask(proxy)[0] == 503
        assert time.monotonic() - began >= 0.2
        proxy.faults = [Fault("delay", seconds=600)]
        asking = ThreadPoolExecutor(1).submit(ask, proxy)
        time.sleep(0.1)
    with pytest.raises((HTTPException, OSError)):
        asking.result(5)


def test_proxy__lists_what_was_there(proxy):
    listing = "/bucket?list-type=2"
    assert ask(proxy, path=listing)[1] == b"1"
    proxy.faults = [Fault("stale", seconds=0.2)]
    assert ask(proxy, path=listing)[1] == b"1"
    time.sleep(0.25)
    assert ask(proxy, path=listing)[1] == b"2"
    assert ask(proxy, path=listing)[1] in (b"2", b"1")
    proxy.faults = []
    assert ask(proxy, path=listing)[1] == b"5"


def test_proxy__picks_by_predicate_and_chance(proxy, echo):
    proxy.faults = [Fault("error", when=lambda request: request.method == "PUT")]
    assert [ask(proxy)[0], ask(proxy, "PUT", body=b"1")[0]] == [200, 503]
    fates = []
    for _ in range(2):
        with Proxy(echo.address, seed=5) as same:
            same.faults = [Fault("error", chance=0.5)]
            fates.append([ask(same)[0] for _ in range(20)])
    assert fates[0] == fates[1]
    assert {*fates[0]} == {200, 503}
