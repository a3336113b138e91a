"""The metrics port over real sockets."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from typing import Any

import pytest
from kleinserve.config import Config
from kleinserve.errors import BadConfig, Unauthenticated
from kleinserve.web import probes
from kleinserve.web.probes import Debug, Health, Probes

READY = Health("ready", True, True)
ADMIN, OTHER = "Bearer admin", "Bearer other"


@contextmanager
def probed(
    exposition: Callable[[], bytes] = lambda: b"klein 1\n",
    health: Callable[[], tuple[str, bool, bool]] = lambda: READY,
    debug: Debug | None = None,
    **settings: Any,
) -> Iterator[Probes]:
    port = Probes(Config(**({"metrics_port": 0} | settings)), exposition, health, debug)
    try:
        yield port
    finally:
        port.stop()


def ask(port: Probes, path: str, method: str = "GET", at: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    """Status and body; a header's name has _ for -."""
    connection = HTTPConnection(at, port.port, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_metrics() -> None:
    """/metrics is the exposition, of Prometheus's type."""
    with probed() as port:
        connection = HTTPConnection("127.0.0.1", port.port, timeout=30)
        connection.request("GET", "/metrics?name[]=x")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"klein 1\n")
        assert (answer.headers["content-type"] or "").startswith("text/plain; version=")
        connection.close()


def received(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection, however it does."""
    connection.settimeout(30)
    whole = b""
    with suppress(ConnectionError):
        while piece := connection.recv(1 << 20):
            whole += piece
    return whole


@pytest.mark.parametrize(
    ("health", "live", "ready"),
    [
        (Health("starting", True, False), 200, 503),
        (Health("ready", True, True), 200, 200),
        (("ledger down", True, False), 200, 503),
        (Health("draining", True, False), 200, 503),
        (Health("dead", False, False), 503, 503),
    ],
)
def test_health(health: tuple[str, bool, bool], live: int, ready: int) -> None:
    """/healthz says whether the process lives, /readyz whether it is to get requests, both with the reason."""
    with probed(health=lambda: health) as port:
        assert ask(port, "/healthz") == (live, f"{health[0]}\n")
        assert ask(port, "/readyz") == (ready, f"{health[0]}\n")
        assert ask(port, "/readyz", "HEAD") == (ready, "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/debug/requests", 404),
        ("POST", "/debug/requests/1/cancel", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/healthz", 405),
    ],
)
def test_other_pages(method: str, path: str, status: int) -> None:
    """There are no other pages, no other methods, and no debug pages unless they are given."""
    with probed() as port:
        assert ask(port, path, method)[0] == status


@pytest.mark.parametrize("sent", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / SPDY\r\n\r\n", b"\xff\xfe / HTTP/1.1\r\n\r\n"])
def test_no_http(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """What is no HTTP is 400; endless heads and those who leave are dropped; nothing is logged."""
    with probed() as port:
        with socket.create_connection(("127.0.0.1", port.port)) as connection:
            connection.sendall(sent)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
        with socket.create_connection(("127.0.0.1", port.port)) as connection:
            connection.sendall(b"x" * 100_000)
            assert received(connection) == b""
        assert ask(port, "/healthz")[0] == 200
    assert caplog.records == []


@pytest.mark.parametrize(("host", "ask_at"), [("::1", "::1"), ("[::1]", "::1"), ("::", "::1"), ("::", "127.0.0.1")])
def test_version_6(host: str, ask_at: str) -> None:
    """It listens on addresses of version 6, and with `::` on all of both versions, as gRPC does."""
    with probed(host=host, insecure=True) as port:
        assert ask(port, "/readyz", at=ask_at) == (200, "ready\n")


def test_localhost() -> None:
    """A name's addresses all answer, on one port."""
    with probed(host="localhost") as port:
        for _, _, _, _, address in socket.getaddrinfo("localhost", port.port, type=socket.SOCK_STREAM):
            assert ask(port, "/readyz", at=str(address[0])) == (200, "ready\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_taken(host: str) -> None:
    """A port that is taken, or a host that is not there, is one line with the address."""
    with probed(host=host) as port:
        with pytest.raises(BadConfig) as caught:
            Probes(Config(host=host, metrics_port=port.port), bytes, lambda: READY)
        address = Config(host=host).address(port.port)
        assert str(caught.value) == f"cannot listen on {address}: Address already in use (--metrics-port)"
    for nowhere in ("host.invalid", "192.0.2.1"):
        with pytest.raises(BadConfig, match=f"cannot listen on {nowhere}:0: "):
            Probes(Config(host=nowhere, insecure=True, metrics_port=0), bytes, lambda: READY)


def test_idle_connections(caplog: pytest.LogCaptureFixture) -> None:
    """300 connections that say nothing, and more than it keeps, stop no answer and log nothing, also when they end."""
    with probed() as port, ExitStack() as idle:
        for number in range(probes.CONNECTIONS_MAX + 100):
            idle.enter_context(socket.create_connection(("127.0.0.1", port.port), timeout=30)).settimeout(30)
            if number in (300, probes.CONNECTIONS_MAX + 99):
                assert ask(port, "/readyz") == (200, "ready\n")
                assert ask(port, "/metrics") == (200, "klein 1\n")
    assert caplog.records == []


def test_idle_connections_end(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that says nothing, or only half a request, is closed after a while."""
    monkeypatch.setattr(probes, "PATIENCE_SECONDS", 0.2)
    with probed() as port:
        for said in (b"", b"GET /metrics HTTP/1.1\r\n"):
            with socket.create_connection(("127.0.0.1", port.port), timeout=30) as connection:
                connection.sendall(said)
                assert received(connection) == b""
    assert caplog.records == []


def test_slow_scrapers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Those who do not read their answer hold nobody up, and are cut off in the end."""
    page = b"x" * 10_000_000
    monkeypatch.setattr(probes, "PATIENCE_SECONDS", 1.0)
    with probed(lambda: page) as port, ExitStack() as slow:
        scrapers: list[socket.socket] = []
        for _ in range(20):
            scraper = slow.enter_context(socket.create_connection(("127.0.0.1", port.port), timeout=30))
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            scrapers.append(scraper)
        assert ask(port, "/readyz") == (200, "ready\n")
        time.sleep(1.5)  # longer than it has patience
        assert all(len(received(scraper)) < len(page) for scraper in scrapers)
    assert caplog.records == []


def test_what_fails_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that fails is logged, closes its connection without an answer, and spoils no other."""
    said: list[str] = []
    monkeypatch.setattr(probes.log, "exception", lambda event: said.append(event), raising=False)
    with probed(lambda: b"" + None) as port:  # type: ignore[operator]
        with pytest.raises(ConnectionError):
            ask(port, "/metrics")
        assert ask(port, "/readyz") == (200, "ready\n")
    assert said == ["probe failed"]


def test_stop() -> None:
    """After stop the port is free at once, whoever was connected; a second stop does nothing."""
    for _ in range(20):
        with probed() as port, socket.create_connection(("127.0.0.1", port.port)):
            port.stop()
            port.stop()
            with probed(metrics_port=port.port) as again:
                assert ask(again, "/readyz")[0] == 200


class Server:
    """What /debug is about."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.loops: set[object] = set()

    def requests(self) -> list[dict[str, Any]]:
        self.loops.add(asyncio.get_running_loop())
        return [{"id": "one", "age_seconds": 1.5}]

    def cancel(self, name: str) -> bool:
        self.loops.add(asyncio.get_running_loop())
        self.cancelled.append(name)
        return name == "one"

    def debug(self, *, has_callers: bool = True) -> Debug:
        check = self.is_admin if has_callers else None
        return Debug(asyncio.get_running_loop(), self.requests, self.cancel, check)

    @staticmethod
    def is_admin(authorization: str) -> bool:
        if authorization not in (ADMIN, OTHER):
            raise Unauthenticated("who?", "unknown")
        return authorization == ADMIN


def not_local(is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_one:
        monkeypatch.setattr(probes, "_is_loopback", lambda _: False)


@pytest.mark.parametrize(
    ("is_far", "headers", "look", "cancel"),
    [
        (False, {}, 200, 401),
        (False, {"authorization": ADMIN}, 200, 200),
        (False, {"authorization": OTHER}, 200, 403),
        (False, {"origin": "https://evil.example"}, 401, 401),
        (False, {"host": "rebound.example"}, 401, 401),
        (False, {"x_forwarded_for": "10.0.0.1"}, 401, 401),
        (False, {"host": "localhost:9464"}, 200, 401),
        (False, {"host": "[::1]:9464"}, 200, 401),
        (True, {}, 401, 401),
        (True, {"authorization": ADMIN}, 200, 200),
        (True, {"authorization": OTHER}, 403, 403),
        (True, {"authorization": "Bearer nobody"}, 401, 401),
        (True, {"authorization": ADMIN, "origin": "https://x"}, 200, 200),
    ],
)
async def test_debug_with_callers(
    is_far: bool, headers: dict[str, str], look: int, cancel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program on this machine may look; an admin from anywhere may look and cancel; pages in browsers may neither."""
    not_local(is_far, monkeypatch)
    server = Server()
    with probed(debug=server.debug()) as port:
        status, body = await asyncio.to_thread(ask, port, "/debug/requests", **headers)
        assert status == look
        assert (status == 200) == ("one" in body)
        cancelled = await asyncio.to_thread(ask, port, "/debug/requests/one/cancel", "POST", **headers)
    assert cancelled[0] == cancel
    assert server.cancelled == (["one"] if cancel == 200 else [])
    assert server.loops <= {asyncio.get_running_loop()}


@pytest.mark.parametrize(("is_far", "expected"), [(False, 200), (True, 403)])
async def test_debug_without_callers(is_far: bool, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without callers a program on this machine may do both, and no other anything."""
    not_local(is_far, monkeypatch)
    with probed(debug=Server().debug(has_callers=False)) as port:
        status, body = await asyncio.to_thread(ask, port, "/debug/requests")
        assert status == expected
        assert expected != 200 or json.loads(body) == [{"id": "one", "age_seconds": 1.5}]
        assert (await asyncio.to_thread(ask, port, "/debug/requests/one/cancel", "POST"))[0] == expected
        missing = await asyncio.to_thread(ask, port, "/debug/requests/two/cancel", "POST")
        assert missing[0] == (404 if expected == 200 else 403)
        assert (await asyncio.to_thread(ask, port, "/debug/requests/one/cancel"))[0] == 405


async def test_a_loop_that_is_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server's own loop is held up, the probes answer, and /debug says so."""
    monkeypatch.setattr(probes, "MAIN_LOOP_SECONDS", 0.2)
    with probed(debug=Server().debug()) as port:
        assert ask(port, "/readyz") == (200, "ready\n")
        assert ask(port, "/debug/requests") == (503, "the server's loop is held up\n")


def test_errors_of_asyncio_are_seen(caplog: pytest.LogCaptureFixture) -> None:
    """What the tests above call "nothing is logged" would see a line of asyncio's own."""
    logging.getLogger("asyncio").error("seen")
    assert [record.message for record in caplog.records] == ["seen"]
