"""The composition root: makes every object once, and carries the server from its start to its end."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from kleinserve import __version__
from kleinserve.codec.intake import Intake
from kleinserve.config import Config
from kleinserve.metrics import Metrics

if TYPE_CHECKING:  # what loads torch or grpc is loaded when the intake's workers run
    from kleinserve.backend.backend import Backend
    from kleinserve.identity.reload import Watched
    from kleinserve.logs import Logs

SPARE_SECONDS = 1.0  # after the grace: for statuses to reach their readers

log = structlog.get_logger()


def run(config: Config, logs: "Logs") -> int:
    """Serve until SIGTERM or SIGINT, drained; a second signal exits at once, and so does one before it is warm.

    Returns the exit code. Raises: BadConfig, UnusableCheckpoint, BadLedger; OSError where a port is taken.
    """
    metrics = Metrics()
    metrics.log_dropped.count = lambda: logs.dropped
    intake = Intake(config, metrics.intake)
    intake.start()  # before torch and grpc are loaded, so that no fork follows them
    try:
        return asyncio.run(_serve(config, logs, metrics, intake))
    finally:
        intake.kill()


def _backend(config: Config, metrics: Metrics) -> "Backend":
    """Where images are made. Raises: UnusableCheckpoint."""
    from kleinserve.backend.local import Local
    from kleinserve.engine import checkpoint
    from kleinserve.engine.engine import Engine

    engine = Engine(checkpoint.find(config.model), config)
    log.info("loaded", **config.shown(), torch_threads=config.torch_threads, memory_chosen=engine.plan.reason)
    for kind in ("used", "peak", "total"):
        metrics.accelerator_memory_bytes.labels(kind).set_function(lambda kind=kind: engine.memory_bytes()[kind])
    return Local(engine, config, metrics)


async def _serve(config: Config, logs: "Logs", metrics: Metrics, intake: Intake) -> int:
    from kleinserve.backend.backend import State
    from kleinserve.desk.books import Books
    from kleinserve.desk.desk import Desk
    from kleinserve.desk.lifecycle import Lifecycle
    from kleinserve.errors import Draining, Internal
    from kleinserve.identity.limits import Quota
    from kleinserve.rpc.call import Calls
    from kleinserve.rpc.server import GrpcServer
    from kleinserve.rpc.servicer import Images, Usages, methods
    from kleinserve.usage import price
    from kleinserve.usage.ledger import NoLedger
    from kleinserve.web.probes import Probes

    backend = _backend(config, metrics)
    facts = backend.facts
    metrics.built(__version__, facts.name, facts.device, facts.dtype)
    metrics.predicted_wait_seconds.set_function(lambda: backend.load().wait_seconds)
    lifecycle, stopping = Lifecycle(), asyncio.Event()
    ledger = NoLedger()
    books = Books(ledger, price.configured(config), facts.name, metrics)
    desk = Desk(backend, intake, books, Quota(time.monotonic_ns), lifecycle, config, metrics)
    calls = Calls(
        methods(Images(desk, facts, config), Usages(ledger)), _authenticator(config), desk, books, config, metrics
    )
    probes = Probes(config, metrics, lambda: _readiness(lifecycle.state, ledger.is_up))
    server = GrpcServer(calls, config, tls=None)
    port = await server.start()  # bound before the warm-up: early requests get NOT_READY

    def on_state(state: State) -> None:
        if state is State.DEAD:
            stopping.set()

    lifecycle.watch(on_state)
    await backend.start(lifecycle.become)
    await server.say(is_serving=True)
    _on_signals(partial(_drain, stopping))
    logs.announce(f"serving on {config.address(port)}, metrics on {config.address(probes.port)}")
    await stopping.wait()

    is_dead = lifecycle.state is State.DEAD
    await server.say(is_serving=False)
    log.info("draining", grace_seconds=config.drain_grace_seconds)
    if not is_dead:
        await asyncio.sleep(config.drain_notice_seconds)
    lifecycle.become(State.DRAINING)
    grace = 0.0 if is_dead else config.drain_grace_seconds
    going = asyncio.create_task(server.stop(grace + SPARE_SECONDS))  # connections are told to go now
    ends = time.monotonic() + grace
    await desk.drain(grace)
    await calls.drain(max(0.1, ends - time.monotonic()), Internal("the accelerator failed") if is_dead else Draining())
    await backend.drain(0.1)
    await going
    await books.close()
    await intake.close()
    probes.stop()
    return 1 if is_dead else 0
