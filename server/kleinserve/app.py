"""The composition root: which server, ledger, keys and backend there are, by the settings."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from kleinserve import __version__, process
from kleinserve.codec.intake import Intake
from kleinserve.config import Config, load
from kleinserve.metrics import COMPILE_STATES, Metrics

if TYPE_CHECKING:  # what loads torch or grpc is loaded after the intake's workers have started
    from kleinserve.backend.backend import Backend
    from kleinserve.logs import Logs
    from kleinserve.server import Server
    from kleinserve.usage.keys import Keys
    from kleinserve.usage.ledger import Ledger

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


async def _front(config: Config, backend: "Backend") -> "Server":
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
) -> "Server":
    """A server with its ledger and its keys; its backend is made after them. Raises: what these raise."""
    from kleinserve.credentials import ServerCredentials
    from kleinserve.server import Server

    credentials, changed = ServerCredentials(config, metrics), asyncio.Event()
    ledger = _ledger(config, metrics, partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set))
    keys = await _keys(config, ledger)
    return Server(config, metrics, intake, credentials, ledger, keys, make(config, metrics), changed)


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
