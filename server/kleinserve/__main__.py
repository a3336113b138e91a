"""argv and environment once -> Config -> serve -> exit code."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import structlog

from kleinserve.config import BadConfig, Config, load
from kleinserve.errors import UnusableCheckpoint


def main() -> None:
    """`kleinserve serve`: exit code 0 when drained, 2 for a setting or a checkpoint that cannot be served."""
    try:
        overrides, file = _arguments()
        config = load(overrides, file)
        sys.exit(_serve(config))
    except (BadConfig, UnusableCheckpoint) as error:
        print(f"kleinserve: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a port that is taken
        print(f"kleinserve: {error}", file=sys.stderr)
        sys.exit(2)


def _arguments() -> tuple[dict[str, Any], Path | None]:
    parser = argparse.ArgumentParser(prog="kleinserve", description="Serve a FLUX.2 [klein] model over gRPC.")
    serve = parser.add_subparsers(dest="command", required=True).add_parser("serve", help="serve until SIGTERM")
    serve.add_argument("--model", help="mini (default), a directory, a hub id, geometry:klein-4b or geometry:DIR")
    serve.add_argument("--host", help="address of both ports (127.0.0.1)")
    serve.add_argument("--port", type=int, help="gRPC port (50051); 0 picks a free one")
    serve.add_argument("--metrics-port", type=int, help="HTTP port of /metrics, /healthz, /readyz (9464)")
    serve.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    serve.add_argument("--dtype", help="auto, float32 or bfloat16")
    serve.add_argument("--memory", help="auto, resident or offload")
    serve.add_argument("--compile", help="auto (on CUDA), on or off")
    serve.add_argument("--quantize", help="none or fp8 (CUDA, needs torchao)")
    serve.add_argument("--config", type=Path, help="a TOML file of settings; see server/kleinserve/config.py")
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    given.pop("command")
    file = given.pop("config", None)
    return given, file


def _serve(config: Config) -> int:
    _configure_logging(config)
    log = structlog.get_logger()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # diffusers imports torchao where it is installed, and both
    for talkative in ("torchao", "torch.utils._pytree"):  # tell of kernels that are not for this machine
        logging.getLogger(talkative).setLevel(logging.ERROR)
    # After the configuration is known to be good: torch takes seconds to import.
    from kleinserve.engine import checkpoint
    from kleinserve.engine.engine import Engine
    from kleinserve.rpc.server import serve

    engine = Engine(checkpoint.find(config.model), config)
    log.info(
        "loaded",
        **config.model_dump(),
        torch_threads=config.torch_threads,
        is_compiled=engine.is_compiled,
        memory_chosen=engine.plan.reason,
    )
    return asyncio.run(serve(engine, config, lambda line: print(line, flush=True)))


def _configure_logging(config: Config) -> None:
    """One line per event on standard error: JSON, or coloured for a person."""
    rendered = structlog.processors.JSONRenderer() if config.log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            rendered,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


if __name__ == "__main__":
    main()
