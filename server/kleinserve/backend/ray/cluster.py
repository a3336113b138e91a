"""The application as Ray runs it, and the command that has it run until a signal."""

import asyncio
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import ray
import structlog
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from kleinserve import process
from kleinserve.backend.ray import ENVIRONMENT
from kleinserve.backend.ray.front import Front, MakeServer
from kleinserve.backend.ray.replica import MakeBackend, Replica
from kleinserve.backend.ray.router import Router
from kleinserve.backend.ray.scaling import by_busy_seconds
from kleinserve.config import Config
from kleinserve.errors import BadConfig

NAME = "klein"
FRONT = "front"  # the resource of nodes that callers reach
STREAMS_MAX = 100_000  # at a replica: each front bounds its own
REPLICA_DRAIN_SECONDS = 900.0  # for its streams to end when it is to go; what lasts longer is made again elsewhere
CONNECT_SECONDS = 10.0
SPARE_SECONDS = 10.0  # for a front, beyond its notice and its grace

log = structlog.get_logger()


def application(config: Config, make_server: MakeServer, make_backend: MakeBackend) -> serve.Application:
    """Fronts over replicas. To be called where the cluster can be asked. Raises: BadConfig."""
    fronts = config.fronts or max(1, _places())
    if fronts > 1 and config.ledger.startswith("sqlite"):
        raise BadConfig(f"{fronts} fronts need a ledger that they share, or none: --ledger")
    replicas = _deployment(
        Replica,
        resources={"num_cpus": 1, "num_gpus": int(_is_on_gpu(config))},
        max_ongoing_requests=STREAMS_MAX,
        max_queued_requests=-1,
        graceful_shutdown_timeout_s=REPLICA_DRAIN_SECONDS,
        graceful_shutdown_wait_loop_s=0.5,
        request_router_config=RequestRouterConfig(request_router_class=Router),
        **_count(config),
    )
    front = _deployment(
        Front,
        resources={"num_cpus": 0, "resources": {FRONT: 1}},
        num_replicas=fronts,
        max_replicas_per_node=1,
        graceful_shutdown_timeout_s=config.drain_notice_seconds + config.drain_grace_seconds + SPARE_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return front.bind(config, make_server, replicas.bind(config, make_backend))


def _places() -> int:
    """The nodes that may have a front."""
    return int(ray.cluster_resources().get(FRONT, 0.0))


def _deployment(of: type, *, resources: dict[str, Any], **options: Any) -> serve.Deployment:
    actor = {"runtime_env": {"env_vars": ENVIRONMENT}, **resources}
    quiet = LoggingConfig(enable_access_log=False)
    return serve.deployment(of, name=of.__name__, ray_actor_options=actor, logging_config=quiet, **options)


def _is_on_gpu(config: Config) -> bool:
    has_gpu = ray.cluster_resources().get("GPU", 0.0) > 0
    return config.device.startswith("cuda") or (config.device == "auto" and has_gpu)


def _count(config: Config) -> dict[str, Any]:
    least, most = config.replica_bounds
    if least == most:
        return {"num_replicas": least}
    policy = AutoscalingPolicy(policy_function=by_busy_seconds)
    return {"autoscaling_config": AutoscalingConfig(min_replicas=least, max_replicas=most, policy=policy)}


def run(config: Config, make_server: MakeServer, make_backend: MakeBackend, announce: Callable[[str], None]) -> int:
    """Have the cluster serve until SIGTERM or SIGINT, then drain; a second signal exits at once.

    Returns the exit code. Raises: BadConfig.
    """
    _connect(config)
    try:
        serve.start(proxy_location="Disabled")
        for line in _deploy(config, make_server, make_backend):
            announce(line)
        asyncio.run(_until_signal())
        log.info("draining")
        _delete()
    finally:
        if not config.ray_address:
            serve.shutdown()
        ray.shutdown()
    return 0


def _deploy(config: Config, make_server: MakeServer, make_backend: MakeBackend) -> list[str]:
    """Have it run; returns the lines that tell where. Raises: BadConfig; then nothing of it is left."""
    if NAME in serve.status().applications:
        raise BadConfig(f"{NAME} is served by this cluster already: `serve deploy` updates it")
    if _places() < max(1, config.fronts):  # Ray would wait for nodes to come
        raise BadConfig(f"{max(1, config.fronts)} fronts need as many nodes with the resource `{FRONT}`: {_places()}")
    try:
        handle = serve.run(application(config, make_server, make_backend), name=NAME, route_prefix=None)
    except RuntimeError as error:
        status = serve.status().applications[NAME]
        why = [deployment.message for deployment in status.deployments.values() if deployment.status != "HEALTHY"]
        _delete()
        raise BadConfig(f"Ray could not start it: {_last_line(max(why, key=len, default=str(error)))}") from error
    return list(dict.fromkeys(line for lines in handle.broadcast("lines").results() for line in lines))


def _delete() -> None:
    """Have it drained; returns when all of it has ended."""
    serve.delete(NAME, _blocking=False)
    while NAME in serve.status().applications:
        time.sleep(0.2)


def _connect(config: Config) -> None:
    """To the cluster at `ray_address`; without one start one on this machine, for this process alone.

    Raises: BadConfig.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "namespace": NAME}
    if config.ray_address:
        try:
            host, _, port = config.ray_address.rpartition(":")
            if port.isdigit():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            ray.init(config.ray_address, **quiet)
        except (OSError, ValueError) as error:
            raise BadConfig(f"no Ray cluster at {config.ray_address}: {_last_line(str(error))}") from error
        return
    cpus = max(process.cores(), config.replica_bounds[1])
    ray.init("local", num_cpus=cpus, resources={FRONT: 1}, include_dashboard=False, **quiet)


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


async def _until_signal() -> None:
    """The first SIGTERM or SIGINT ends the waiting, the next the process."""
    loop, has_come = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, has_come.set)
    await has_come.wait()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
    process.end_on_signals()
