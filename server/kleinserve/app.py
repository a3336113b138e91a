"""The composition root: makes every object once, and carries the server from its start to its end."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from kleinserve import __version__, process
from kleinserve.codec.intake import Intake
from kleinserve.config import Config, load
from kleinserve.metrics import COMPILE_STATES, Metrics

if TYPE_CHECKING:  # what loads torch or grpc is loaded after the intake's workers have started
    from kleinserve.backend.backend import Backend, State
    from kleinserve.identity.authenticator import Authenticator
    from kleinserve.identity.certificates import Certificates
    from kleinserve.identity.reload import Watched
    from kleinserve.logs import Logs
    from kleinserve.usage.buckets import SqlBuckets
    from kleinserve.usage.keys import Keys
    from kleinserve.usage.ledger import Ledger
    from kleinserve.web.probes import Health

SPARE_SECONDS = 1.0  # after the grace: for statuses to reach their readers
TRACES_SECONDS = 3.0  # for the last traces to reach their collector

log = structlog.get_logger()


def run(config: Config, logs: "Logs") -> int:
    """Serve until SIGTERM or SIGINT, drained; a second signal exits at once, and so does one before it is warm.

    Returns the exit code. Raises: BadConfig, UnusableCheckpoint.
    """
    if config.backend == "ray":
        from kleinserve.backend import ray

        ray.settle(config.ray_address)
        from kleinserve.backend.ray import cluster

        return cluster.run(config, _front, _replica, logs.announce)
    metrics = Metrics()
    metrics.log_dropped.count = lambda: logs.dropped
    intake = Intake(config, metrics.intake)
    intake.start()  # before torch and grpc are loaded, so that no fork follows them
    try:
        return asyncio.run(_serve(config, logs, metrics, intake))
    finally:
        intake.kill()


async def _serve(config: Config, logs: "Logs", metrics: Metrics, intake: Intake) -> int:
    server = await _server(config, metrics, intake, _backend)
    lines = await server.start()
    server.stop_on_signals()
    for line in lines:
        logs.announce(line)
    await server.stopping.wait()
    return await server.stop()


def application(args: dict[str, Any]) -> Any:
    """What a RayService and `serve deploy` run: `args` are settings, beside those of the head's environment."""
    from kleinserve.backend.ray import cluster

    return cluster.application(load({"backend": "ray", **args}, is_elsewhere=True), _front, _replica)


async def _front(config: Config, backend: "Backend") -> "_Server":
    """The server of a process that Ray started, whose images are made elsewhere."""
    _settle(config)
    metrics = Metrics()
    intake = Intake(config, metrics.intake)
    intake.start()
    return await _server(config, metrics, intake, lambda config, metrics: backend)


async def _replica(config: Config) -> "Backend":
    """The backend of a process that Ray started to make images, and the engine's metrics where they have a port."""
    from kleinserve.web.probes import Health, Probes

    _settle(config)
    metrics = Metrics()
    backend = _backend(config, metrics)
    if config.replica_metrics_port is not None:
        metrics.built(__version__, backend.facts.name, backend.facts.device, backend.facts.dtype)
        here = config.model_copy(update={"metrics_port": config.replica_metrics_port})
        probes = Probes(here, metrics.exposition, lambda: Health("replica", True, True))
        log.info(f"metrics on {config.address(probes.port)}")
    return backend


def _settle(config: Config) -> None:
    """What `kleinserve serve` does first, in a process that Ray started."""
    from kleinserve.logs import configure

    process.tune(config.malloc_arenas)
    process.settle_home()
    configure(config)


async def _server(
    config: Config, metrics: Metrics, intake: Intake, make: "Callable[[Config, Metrics], Backend]"
) -> "_Server":
    """A server with its ledger and its keys; its backend is made after them. Raises: what these raise."""
    identity, changed = _Identity(config, metrics), asyncio.Event()
    ledger = _ledger(config, metrics, partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set))
    keys = await _keys(config, ledger)
    return _Server(config, metrics, intake, identity, ledger, keys, make(config, metrics), changed)


class _Server:
    """Every object of a server that has a backend, and its way from start to stop."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        intake: Intake,
        identity: "_Identity",
        ledger: "Ledger",
        keys: "Keys",
        backend: "Backend",
        ledger_changed: asyncio.Event,
    ):
        from kleinserve.desk.books import Books
        from kleinserve.desk.desk import Desk
        from kleinserve.desk.kept import Shelf
        from kleinserve.desk.keys import KeyRing
        from kleinserve.desk.lifecycle import Lifecycle
        from kleinserve.desk.quota import SharedQuota
        from kleinserve.identity.limits import Quota
        from kleinserve.rpc.call import Calls
        from kleinserve.rpc.forward import Forward
        from kleinserve.rpc.server import GrpcServer
        from kleinserve.rpc.servicer import Images, Usages, methods
        from kleinserve.tracing import configured
        from kleinserve.usage import price
        from kleinserve.web.probes import Debug, Probes

        self._config, self._intake, self._identity, self._ledger = config, intake, identity, ledger
        self._keys = keys
        self._backend, self.lifecycle, self.stopping = backend, Lifecycle(), asyncio.Event()
        facts = backend.facts
        metrics.built(__version__, facts.name, facts.device, facts.dtype)
        metrics.predicted_wait_seconds.set_function(lambda: backend.load().wait_seconds)
        self._books = Books(ledger, keys, price.configured(config), facts.name, metrics)
        loop = asyncio.get_running_loop()
        shelf = Shelf(config.kept_bytes_max, config.kept_seconds, loop.time, loop.call_later, lambda k: ring.evict(k))
        ring = KeyRing(keys, shelf, facts, metrics)
        metrics.kept_bytes.set_function(lambda: shelf.bytes)
        metrics.kept_results.set_function(lambda: len(shelf))
        quota = SharedQuota(Quota(time.monotonic_ns), _buckets(ledger))
        self._desk = Desk(backend, intake, self._books, ring, quota, self.lifecycle, config, metrics)
        forward = Forward(identity.authenticator, identity.replica_credentials, 2 * config.owner_seconds)
        table = methods(Images(self._desk, forward, facts, config), Usages(ledger))
        self._tracing = configured(os.environ)
        self._calls = Calls(table, identity.authenticator, self._desk, self._books, config, metrics, self._tracing)
        self._grpc = GrpcServer(self._calls, config, identity.grpc_credentials())
        debug = Debug(loop, self._desk.shown, self._desk.cancel_request, identity.is_admin())
        self._probes = Probes(config, metrics.exposition, self._health, debug)
        self._web: Any = None
        self._telling = asyncio.create_task(self._tell_health(ledger_changed))

    def _health(self) -> "Health":
        """What the probes say, from the signal to drain on not ready."""
        from kleinserve.backend.backend import State
        from kleinserve.web.probes import Health

        state = self.lifecycle.state
        if state is State.READY and self.stopping.is_set():
            return Health("draining", True, False)
        if state is State.READY and not self._ledger.is_up:
            return Health("ledger down", True, False)
        return Health(state.value, state is not State.DEAD, state is State.READY)

    async def _tell_health(self, changed: asyncio.Event) -> None:
        """Tell health checks whenever the ledger has gone or come back, so that a balancer sends requests elsewhere."""
        while True:
            await changed.wait()
            changed.clear()
            await self._grpc.say(is_serving=self._health().is_ready)

    async def start(self) -> list[str]:
        """Listen and warm; returns the lines that say where. Raises: BadConfig where a port is taken; what the warm-up
        raised.
        """
        config = self._config
        port = await self._grpc.start()  # bound before the warm-up: early requests get NOT_READY
        self._keys.reached_at(self._reached_at(port))
        self.lifecycle.watch(self._on_state)
        self._identity.start()
        web = await self._start_web()
        await self._backend.start(self.lifecycle.become)
        await self._grpc.say(is_serving=self._health().is_ready)
        lines = [f"serving on {config.address(port)}, metrics on {config.address(self._probes.port)}"]
        return lines if web is None else [*lines, f"web on {config.address(web)}"]

    def _reached_at(self, port: int) -> str:
        """Where other servers reach this one: "" where nobody said, and `host` is every address."""
        config = self._config
        is_every = config.host in ("0.0.0.0", "::")
        if not config.advertise and is_every and _is_shared(self._ledger):
            log.warning("other servers cannot pass requests on to this one: set advertise to HOST:PORT")
        return config.advertise or ("" if is_every else config.address(port))

    async def _start_web(self) -> int | None:
        if self._config.web_port is None:
            return None
        from kleinserve.web.app import application
        from kleinserve.web.server import WebServer

        app = application(self._calls, self._grpc.health, self._backend.facts, self._config)
        self._web = WebServer(app, self._config, self._identity.web_context())
        return int(await self._web.start())

    def _on_state(self, state: "State") -> None:
        from kleinserve.backend.backend import State

        if state is State.DEAD:
            self.stopping.set()

    def stop_on_signals(self) -> None:
        """The first SIGTERM or SIGINT drains, the next ends the process; SIGHUP reads the files again."""
        loop = asyncio.get_running_loop()

        def drain() -> None:
            self.stopping.set()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, os._exit, 128 + number)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain)
        loop.add_signal_handler(signal.SIGHUP, self._identity.check_now)

    async def stop(self) -> int:
        """Drain and end; returns the exit code."""
        from kleinserve.backend.backend import State
        from kleinserve.errors import Draining, Internal, KleinError

        is_dead = self.lifecycle.state is State.DEAD
        cause: KleinError = Internal("the accelerator failed") if is_dead else Draining()
        grace = 0.1 if is_dead else self._config.drain_grace_seconds
        log.info("draining", grace_seconds=grace)
        await self._grpc.say(is_serving=False)
        if not is_dead:
            await asyncio.sleep(self._config.drain_notice_seconds)
        self.lifecycle.become(State.DRAINING)
        ends = time.monotonic() + grace
        going = [asyncio.create_task(self._grpc.stop(grace + SPARE_SECONDS))]  # connections are told to go now
        await self._desk.drain(grace)
        await self._calls.drain(max(0.1, ends - time.monotonic()), cause)
        await self._backend.drain(SPARE_SECONDS)
        going.append(asyncio.create_task(self._grpc.stop(SPARE_SECONDS)))  # watches of our health would stay
        if self._web is not None:  # until here it says DRAINING to whoever comes
            going.append(asyncio.create_task(self._web.stop(SPARE_SECONDS)))
        await asyncio.gather(*going)
        await self._books.close()
        await self._intake.close()
        self._identity.stop()
        if self._tracing is not None:
            self._tracing.close(TRACES_SECONDS)
        self._probes.stop()
        self._telling.cancel()
        return 1 if is_dead else 0


class _Identity:
    """Who calls, and the certificates: files that are read again when they change. Raises: BadConfig."""

    def __init__(self, config: Config, metrics: Metrics):
        from kleinserve.identity.authenticator import Everyone
        from kleinserve.identity.callers import WatchedCallers, watch_callers
        from kleinserve.identity.certificates import CertificateFiles, watch_certificates
        from kleinserve.identity.reload import Reloads

        watched: list[Watched[Any]] = []
        self.authenticator: Authenticator = Everyone()
        self.certificates: Watched[Certificates] | None = None
        if config.callers is not None:
            watched.append(callers := watch_callers(Path(config.callers)))
            self.authenticator = WatchedCallers(callers)
        if config.tls_certificate is not None and config.tls_key is not None:
            client_ca = Path(config.tls_client_ca) if config.tls_client_ca else None
            files = CertificateFiles(Path(config.tls_certificate), Path(config.tls_key), client_ca)
            self.certificates = watch_certificates(files)
            watched.append(self.certificates)
        self._knows_callers = config.callers is not None
        self._replicas_ca = config.replicas_ca
        self._reloads = Reloads(watched, lambda what, outcome: metrics.reloads.labels(what, outcome).inc())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._reloads.run())

    def check_now(self) -> None:
        self._reloads.check_now()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def is_admin(self) -> Callable[[str], bool] | None:
        """Whether the value of an `authorization` header is an admin's; None: there are no callers."""
        from kleinserve.identity.authenticator import Credentials

        if not self._knows_callers:
            return None
        return lambda authorization: self.authenticator.caller(Credentials((authorization,))).is_admin

    def grpc_credentials(self) -> Any:
        """For the gRPC port; None: plain text."""
        from kleinserve.rpc.server import tls_credentials

        return None if self.certificates is None else tls_credentials(self.certificates)

    def replica_credentials(self) -> Any:
        """For connections to other servers, by the newest certificates; None: plain text."""
        from kleinserve.rpc.forward import channel_credentials

        if self.certificates is None:
            return None
        ca = None if self._replicas_ca is None else self._replicas_ca.read_bytes()
        return channel_credentials(self.certificates.value, ca)

    def web_context(self) -> Any:
        """For the web port; None: plain text."""
        from kleinserve.identity.certificates import serving_context

        certificates = self.certificates
        return None if certificates is None else serving_context(lambda: certificates.value)


def _ledger(config: Config, metrics: Metrics, changed: Callable[[], object]) -> "Ledger":
    """`changed` is called from any thread when the ledger has gone or come back. Raises: BadLedger."""
    from kleinserve.usage.ledger import NoLedger

    if config.ledger == "none":
        metrics.ledger_up.set(1)  # nothing is refused for want of one
        return NoLedger()
    from kleinserve.usage.sql import SqlLedger

    def on_up(is_up: bool) -> None:
        metrics.ledger_up.set(is_up)
        with suppress(RuntimeError):  # the loop has been closed
            changed()

    return SqlLedger(
        config.ledger,
        on_commit=metrics.ledger_commit_seconds.observe,
        on_up=on_up,
        on_dropped=metrics.ledger_dropped.inc,
    )


async def _keys(config: Config, ledger: "Ledger") -> "Keys":
    """Keys are where the ledger is; without one they end with the process."""
    from kleinserve.usage.keys import MemoryKeys
    from kleinserve.usage.ledger import NoLedger

    bounds: dict[str, Any] = {"key_seconds": config.key_seconds, "keys_max": config.keys_max}
    owner: dict[str, Any] = {"owner": config.owner, "owner_seconds": config.owner_seconds}
    if isinstance(ledger, NoLedger):
        return MemoryKeys(**bounds)
    from kleinserve.usage.sql import SqlLedger
    from kleinserve.usage.sql_keys import SqlKeys

    assert isinstance(ledger, SqlLedger)
    return await SqlKeys.open(ledger, **bounds, **owner)


def _is_shared(ledger: "Ledger") -> bool:
    """Whether other servers keep theirs in the same database."""
    from kleinserve.usage.sql import SqlLedger

    return isinstance(ledger, SqlLedger) and ledger.is_shared


def _buckets(ledger: "Ledger") -> "SqlBuckets | None":
    """The callers' buckets of megapixels, where other servers share them."""
    from kleinserve.usage.buckets import SqlBuckets
    from kleinserve.usage.sql import SqlLedger

    return SqlBuckets(ledger) if isinstance(ledger, SqlLedger) and ledger.is_shared else None


def _backend(config: Config, metrics: Metrics) -> "Backend":
    """Where images are made. Raises: UnusableCheckpoint."""
    from kleinserve.backend.local import Local
    from kleinserve.engine import checkpoint
    from kleinserve.engine.engine import Engine

    engine = Engine(checkpoint.find(config.model, config.revision, config.vae), config)
    log.info("loaded", **config.shown(), memory_chosen=engine.plan.reason)
    for kind in ("used", "peak", "total"):
        metrics.accelerator_memory_bytes.labels(kind).set_function(partial(_bytes, engine, kind))
    for state in COMPILE_STATES:
        metrics.compile_state.labels(state).set_function(partial(_is_compiled, engine, state))
    return Local(engine, config, metrics)


def _bytes(engine: Any, kind: str) -> float:
    return float(engine.memory_bytes()[kind])


def _is_compiled(engine: Any, state: str) -> float:
    """1.0 where its blocks run so; known once it is warm."""
    return float(engine.compile_state.startswith(state))
