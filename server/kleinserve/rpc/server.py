"""The process's servers: gRPC with health and reflection, plain HTTP with metrics and probes; start to drained."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from klein.v1 import image_pb2, image_pb2_grpc, usage_pb2, usage_pb2_grpc
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import ThreadingWSGIServer

from kleinserve import __version__
from kleinserve.config import Config
from kleinserve.engine.engine import Engine
from kleinserve.metrics import Metrics
from kleinserve.rpc.interceptor import Counting
from kleinserve.rpc.servicer import ImageServicer, UsageServicer
from kleinserve.scheduler.scheduler import Scheduler, State

log = structlog.get_logger()
SERVICES = (
    image_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name,
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"].full_name,
)


async def serve(engine: Engine, config: Config, announce: Callable[[str], None]) -> int:
    """Serve until SIGTERM or SIGINT, drained; a second signal exits at once, and so does one before it is warm.

    Returns the exit code.

    Raises: OSError, one line with the address, where a port is taken.
    """
    _on_signals(_exit)  # until it is warm nothing is admitted that could be lost
    metrics = Metrics()
    facts = engine.facts
    metrics.built(__version__, facts.name, facts.device, facts.dtype)
    for kind in ("used", "peak", "total"):
        metrics.accelerator_memory_bytes.labels(kind).set_function(partial(_memory, engine, kind))
    healthy = health.aio.HealthServicer()
    stopping, dead = asyncio.Event(), asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def on_state(state: State) -> None:
        is_serving = state is State.READY
        task = asyncio.get_running_loop().create_task(_say(healthy, is_serving=is_serving))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if state is State.DEAD:
            dead.set()
            stopping.set()

    scheduler = Scheduler(engine, config, metrics, on_state)
    await _say(healthy, is_serving=False)
    web = _WebServer(config, metrics, lambda: _state(scheduler, stopping, dead))
    server = _grpc_server(config, ImageServicer(scheduler, facts, config, metrics), healthy, metrics)
    port = await _bound(server, config)
    await server.start()  # bound before the warm-up: early requests get NOT_READY
    await scheduler.start()
    _on_signals(lambda number: _drain(stopping))
    announce(f"serving on {config.host}:{port}, metrics on {config.host}:{web.port}")
    await stopping.wait()
    log.info("draining", grace_seconds=config.drain_grace_seconds)
    await _say(healthy, is_serving=False)
    if not dead.is_set():
        await asyncio.sleep(config.drain_notice_seconds)
    await scheduler.drain(0.1 if dead.is_set() else config.drain_grace_seconds)
    await server.stop(1.0)
    web.stop()
    return 1 if dead.is_set() else 0


def _grpc_server(
    config: Config, images: ImageServicer, healthy: health.aio.HealthServicer, metrics: Metrics
) -> grpc.aio.Server:
    server = grpc.aio.server(
        interceptors=[Counting(metrics)],
        options=[
            ("grpc.max_receive_message_length", config.request_bytes_max),
            ("grpc.max_concurrent_streams", 1024),
            # Clients may ping during long steps; the defaults would send them away.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),
        ],
    )
    image_pb2_grpc.add_ImageServiceServicer_to_server(images, server)
    usage_pb2_grpc.add_UsageServiceServicer_to_server(UsageServicer(), server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server


async def _bound(server: grpc.aio.Server, config: Config) -> int:
    """The port that the server listens on. Raises: OSError."""
    try:
        return server.add_insecure_port(f"{config.host}:{config.port}")
    except RuntimeError as error:
        await server.stop(None)
        raise OSError(f"cannot listen on {config.host}:{config.port}") from error


def _state(scheduler: Scheduler, stopping: asyncio.Event, dead: asyncio.Event) -> State:
    """What the probes say: draining from the signal on, also while requests are still accepted; once dead, dead."""
    if dead.is_set():
        return State.DEAD
    return State.DRAINING if stopping.is_set() else scheduler.state


def _memory(engine: Engine, kind: str) -> float:
    return engine.memory_bytes()[kind]


async def _say(healthy: health.aio.HealthServicer, *, is_serving: bool) -> None:
    status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
    for service in ("", *SERVICES):
        await healthy.set(service, status)


def _on_signals(act: Callable[[int], None]) -> None:
    """Have SIGTERM and SIGINT call `act` with their number, on the event loop."""
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, act, number)


def _drain(stopping: asyncio.Event) -> None:
    """The first signal's: drain. The next one ends the process."""
    stopping.set()
    _on_signals(_exit)


def _exit(number: int) -> None:
    """End at once, with a shell's exit code for the signal; its default does nothing to a container's process 1."""
    os._exit(128 + number)


class _Quiet(WSGIRequestHandler):
    timeout = 10.0  # seconds for a connection that says nothing

    def log_message(self, format: str, *arguments: object) -> None:
        """Probes and scrapes are not logged."""


class _WebServer:
    """/metrics, /healthz (the process lives) and /readyz (it serves) on a thread of their own."""

    def __init__(self, config: Config, metrics: Metrics, state: Callable[[], State]):
        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path == "/metrics":
                start_response("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
                return [metrics.exposition()]
            alive = path == "/healthz" and state() is not State.DEAD
            if alive or (path == "/readyz" and state() is State.READY):
                start_response("200 OK", [("Content-Type", "text/plain")])
            elif path in ("/healthz", "/readyz"):
                start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
            else:
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"not found\n"]
            return [f"{state().value}\n".encode()]

        self._server = self._bound(config, application)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @staticmethod
    def _bound(config: Config, application: Callable[..., Iterable[bytes]]) -> WSGIServer:
        try:
            return make_server(config.host, config.metrics_port, application, ThreadingWSGIServer, _Quiet)
        except OSError as error:
            raise OSError(f"cannot listen on {config.host}:{config.metrics_port}: {error.strerror}") from error

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
