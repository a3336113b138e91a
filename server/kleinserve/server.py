"""One server: every object that it has beside its backend, and its way from start to stop. Loads grpc, not torch."""

import asyncio
import os
import signal
import time
from typing import Any

import structlog

from kleinserve import __version__, process
from kleinserve.backend.backend import Backend, State
from kleinserve.codec.intake import Intake
from kleinserve.config import Config
from kleinserve.credentials import ServerCredentials
from kleinserve.desk.books import Books
from kleinserve.desk.desk import Desk
from kleinserve.desk.kept import Shelf
from kleinserve.desk.keys import KeyRing
from kleinserve.desk.lifecycle import Lifecycle
from kleinserve.desk.quota import SharedQuota
from kleinserve.errors import Draining, Internal, KleinError
from kleinserve.identity.limits import Quota
from kleinserve.metrics import Metrics
from kleinserve.rpc.calls import Calls
from kleinserve.rpc.forward import Forward
from kleinserve.rpc.server import GrpcServer
from kleinserve.rpc.servicer import Images, Usages, methods
from kleinserve.tracing import configured
from kleinserve.usage import price
from kleinserve.usage.buckets import SqlBuckets
from kleinserve.usage.keys import Keys
from kleinserve.usage.ledger import Ledger
from kleinserve.usage.sql import SqlLedger
from kleinserve.web.probes import Debug, Health, Probes

SPARE_SECONDS = 1.0  # after the grace: for statuses to reach their readers
TRACES_SECONDS = 3.0  # for the last traces to reach their collector
IDLE_SECONDS = 4.0  # without a call, after which freed memory goes back
LOADED_SECONDS = 20.0  # after which it does while calls go on: the next steps fault their pages in again

log = structlog.get_logger()


class Server:
    """Every object of a server that has a backend, and its way from start to stop."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        intake: Intake,
        credentials: ServerCredentials,
        ledger: Ledger,
        keys: Keys,
        backend: Backend,
        ledger_changed: asyncio.Event,
    ):
        self._config, self._intake, self._credentials, self._ledger = config, intake, credentials, ledger
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
        forward = Forward(credentials.authenticator, credentials.replica_credentials, 2 * config.owner_seconds)
        table = methods(Images(self._desk, forward, facts, config), Usages(ledger))
        self._tracing = configured(os.environ)
        self._calls = Calls(table, credentials.authenticator, self._desk, self._books, config, metrics, self._tracing)
        self._grpc = GrpcServer(self._calls, config, credentials.grpc_credentials())
        debug = Debug(loop, self._desk.jobs.shown, self._desk.jobs.cancel_request, credentials.is_admin())
        self._probes = Probes(config, metrics.exposition, self._health, debug)
        self._web: Any = None
        beside = self._tell_health(ledger_changed), self._give_back()
        self._beside = [asyncio.create_task(one) for one in beside]

    def _health(self) -> Health:
        """What the probes say, from the signal to drain on not ready."""
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

    async def _give_back(self) -> None:
        """Return freed memory to the system once nobody has called for a while, and now and then under load.

        Large references leave much of it; between allocations that stay it would add up.
        """
        seen = given = 0
        clock = asyncio.get_running_loop().time
        last = clock()
        while True:
            await asyncio.sleep(IDLE_SECONDS)
            load, begun = self._backend.load(), self._calls.begun
            is_idle = begun == seen and not (self._calls.running or load.waiting or load.running)
            if begun != given and (is_idle or clock() - last >= LOADED_SECONDS):
                await asyncio.to_thread(process.give_back)
                given, last = begun, clock()
            seen = begun

    async def start(self) -> list[str]:
        """Listen and warm; returns the lines that say where. Raises: BadConfig where a port is taken; what the warm-up
        raised.
        """
        config = self._config
        port = await self._grpc.start()  # bound before the warm-up: early requests get NOT_READY
        self._keys.reached_at(self._reached_at(port))
        self.lifecycle.watch(self._on_state)
        self._credentials.start()
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
        from kleinserve.web.app import application  # an extra
        from kleinserve.web.server import WebServer

        app = application(self._calls, self._grpc.health, self._backend.facts, self._config)
        self._web = WebServer(app, self._config, self._credentials.web_context())
        return int(await self._web.start())

    def _on_state(self, state: State) -> None:
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
        loop.add_signal_handler(signal.SIGHUP, self._credentials.check_now)

    async def stop(self) -> int:
        """Drain and end; returns the exit code."""
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
        await self._desk.jobs.drain(grace)
        await self._calls.drain(max(0.1, ends - time.monotonic()), cause)
        await self._backend.drain(SPARE_SECONDS)
        going.append(asyncio.create_task(self._grpc.stop(SPARE_SECONDS)))  # watches of our health would stay
        if self._web is not None:  # until here it says DRAINING to whoever comes
            going.append(asyncio.create_task(self._web.stop(SPARE_SECONDS)))
        await asyncio.gather(*going)
        await self._books.close()
        await self._intake.close()
        self._credentials.stop()
        if self._tracing is not None:
            self._tracing.close(TRACES_SECONDS)
        self._probes.stop()
        for one in self._beside:
            one.cancel()
        return 1 if is_dead else 0


def _is_shared(ledger: Ledger) -> bool:
    """Whether other servers keep theirs in the same database."""
    return isinstance(ledger, SqlLedger) and ledger.is_shared


def _buckets(ledger: Ledger) -> SqlBuckets | None:
    """The callers' buckets of megapixels, where other servers share them."""
    return SqlBuckets(ledger) if isinstance(ledger, SqlLedger) and ledger.is_shared else None
