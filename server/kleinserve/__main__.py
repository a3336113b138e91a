"""argv and environment once -> Config -> a command -> exit code. Takes charge of signals and streams first.

Everything else is imported where it is used: a signal may come at any moment, and a command needs its own extra only.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from kleinserve import process

if TYPE_CHECKING:
    import argparse

    from kleinserve.config import Config

EXTRAS = {  # by module; all others are of `server`
    "multipart": "web",
    "python_multipart": "web",
    "starlette": "web",
    "uvicorn": "web",
    "opentelemetry": "tracing",
    "ray": "ray",
    "torchao": "fp8",
}
FLUSH_SECONDS = 1.0  # for the log's last lines


def main() -> None:
    """Exit code 0: done, or drained; 1: unforeseen, the log says what; 2: a setting, a checkpoint, a port or a missing
    extra, one line on standard error says which; 130, 143: a signal at the start, or a second one.
    """
    process.end_on_signals()
    process.open_standard_streams()
    sys.exit(_run(sys.argv[1:]))


def _run(argv: list[str]) -> int:
    from kleinserve.errors import BadConfig, UnusableCheckpoint

    try:
        arguments = _parser().parse_args(argv)
        return int(arguments.command(arguments))
    except (BadConfig, UnusableCheckpoint) as error:
        process.say(f"kleinserve: {error}")
        return 2
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        process.say(f"kleinserve: {root} is not installed: pip install 'klein-serve[{EXTRAS.get(root, 'server')}]'")
        return 2
    except BrokenPipeError:  # `kleinserve usage export | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter's last flush fails again
        return 1
    except Exception as error:
        process.say(f"kleinserve: {type(error).__name__}: {error}")
        return 1


def _parser() -> "argparse.ArgumentParser":
    import argparse

    parser = argparse.ArgumentParser(prog="kleinserve", description="Serve a FLUX.2 [klein] model over gRPC.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    token = commands.add_parser("token", help="make a token for a caller")
    token.add_argument("name", metavar="NAME")
    token.set_defaults(command=_token)
    usage = commands.add_parser("usage", help="the ledger").add_subparsers(required=True, metavar="COMMAND")
    export = usage.add_parser("export", help="print usage records, in the order of their commits")
    export.add_argument("--after", default="", metavar="CURSOR", help="begin after this cursor")
    export.add_argument("--follow", action="store_true", help="wait for more at the end")
    prune = usage.add_parser("prune", help="delete old usage records")
    prune.add_argument("--before", required=True, metavar="DATE", help="the first day to keep, as 2026-01-31, in UTC")
    migrate = usage.add_parser("migrate", help="bring the ledger's tables up to date")
    for command, run in ((export, _export), (prune, _prune), (migrate, _migrate)):
        _add_config(command)
        command.set_defaults(command=run)
    envoy = commands.add_parser("envoy-config", help="print a configuration of Envoy before several servers")
    envoy.add_argument(
        "--replica", action="append", required=True, metavar="HOST:PORT", help="a server; may be repeated"
    )
    envoy.add_argument("--port", type=int, default=50050, help="Envoy's own (50050)")
    envoy.add_argument("--tls-certificate", metavar="FILE")
    envoy.add_argument("--tls-key", metavar="FILE")
    envoy.add_argument("--web-origins", default="", metavar="ORIGIN,…", help="pages whose scripts may call it")
    envoy.set_defaults(command=_envoy)
    return parser


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="serve until SIGTERM")
    serve.add_argument("--model", help="mini (default), a directory, a hub id, geometry:klein-4b or geometry:DIR")
    serve.add_argument("--revision", help="of a hub id: a commit, tag or branch (its main branch)")
    serve.add_argument("--vae", metavar="DIR", help="a directory or hub id whose VAE takes the model's place")
    serve.add_argument("--host", help="address of all ports (127.0.0.1)")
    serve.add_argument("--port", help="gRPC port (50051); 0 picks a free one")
    serve.add_argument("--metrics-port", help="HTTP port of /metrics, /healthz, /readyz (9464)")
    serve.add_argument("--web-port", help="HTTP port of gRPC-Web, playground and OpenAI's API (off)")
    serve.add_argument("--web-origins", metavar="ORIGIN,…", help="other pages whose scripts may use the web port")
    serve.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    serve.add_argument("--dtype", help="auto, float32 or bfloat16")
    serve.add_argument("--memory", help="auto, resident or offload")
    serve.add_argument("--compile", help="auto (on CUDA), on or off")
    serve.add_argument("--quantize", help="none or fp8 (CUDA, needs torchao)")
    serve.add_argument("--backend", help="local (default) or ray")
    serve.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster (else one of its own on this machine)")
    serve.add_argument("--replicas", metavar="MIN:MAX", help="on Ray (1:1)")
    serve.add_argument("--callers", metavar="FILE", help="TOML: who may call; without it everyone may")
    serve.add_argument("--tls-certificate", metavar="FILE", help="PEM, with its chain")
    serve.add_argument("--tls-key", metavar="FILE", help="PEM")
    serve.add_argument("--tls-client-ca", metavar="FILE", help="PEM: clients need a certificate of this CA")
    serve.add_argument(
        "--insecure", action="store_const", const=True, help="a host that others reach, without the above"
    )
    _add_config(serve)
    serve.set_defaults(command=_serve)


def _add_config(command: "argparse.ArgumentParser") -> None:
    command.add_argument("--ledger", help="sqlite (default), a SQLAlchemy URL or none")
    command.add_argument("--config", metavar="FILE", help="a TOML file of settings; see server/kleinserve/config.py")


def _config(arguments: "argparse.Namespace") -> "Config":
    """The settings of the command line's flags of the same name, with environment and file. Raises: BadConfig."""
    from pathlib import Path

    from kleinserve.config import Config, load

    given = {name: value for name, value in vars(arguments).items() if value is not None}
    file = Path(given["config"]) if "config" in given else None
    return load({name: value for name, value in given.items() if name in Config.model_fields}, file)


def _serve(arguments: "argparse.Namespace") -> int:
    config = _config(arguments)
    process.tune(config.malloc_arenas)
    home = process.settle_home()
    import structlog

    from kleinserve.errors import BadConfig, UnusableCheckpoint
    from kleinserve.logs import configure

    logs = configure(config)
    process.end_on_signals_after(lambda: logs.close(FLUSH_SECONDS))
    log = structlog.get_logger()
    try:
        if home is not None:
            log.warning(
                "no home: caches, and without a name the ledger too, are in a temporary folder", folder=str(home)
            )
        # After the configuration is known to be good: torch takes seconds to import.
        from kleinserve.app import run

        code = run(config, logs)
    except (BadConfig, UnusableCheckpoint):
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("kleinserve"):
            raise
        log.critical("failed", exc_info=error)
        code = 1
    finally:
        process.end_on_signals()  # an event loop that ended put back Python's own
        logs.close(FLUSH_SECONDS)
    # What must end has ended. The interpreter's own end stops threads within C++ frames, and may abort on the way.
    os._exit(code)


def _token(arguments: "argparse.Namespace") -> int:
    from kleinserve.identity import tokens

    return tokens.main(arguments.name)


def _export(arguments: "argparse.Namespace") -> int:
    config = _config(arguments)
    from kleinserve.usage import commands

    return commands.export(config.ledger, arguments.after, arguments.follow)


def _prune(arguments: "argparse.Namespace") -> int:
    config = _config(arguments)
    from kleinserve.usage import commands

    return commands.prune(config.ledger, arguments.before)


def _migrate(arguments: "argparse.Namespace") -> int:
    config = _config(arguments)
    from kleinserve.usage import commands

    return commands.migrate(config.ledger)


def _envoy(arguments: "argparse.Namespace") -> int:
    from kleinserve.web import envoy

    origins = [origin for origin in arguments.web_origins.split(",") if origin]
    return envoy.main(arguments.replica, arguments.port, arguments.tls_certificate, arguments.tls_key, origins)


if __name__ == "__main__":
    main()
