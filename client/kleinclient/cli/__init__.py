"""The `klein` command. Importing this needs nothing beyond the library; running it needs the `cli` extra."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from kleinclient import errors
from kleinclient.cli.arguments import parser
from kleinclient.errors import KleinError

EXTRA = {"PIL", "rich", "shtab", "textual_image"}
FAILED, WRONG, NOT_NOW, TOO_LATE, NOT_ALLOWED = 1, 2, 3, 4, 5  # arguments.py tells people what they mean
CODES: dict[type[KleinError], int] = {
    errors.DeadlineExceeded: TOO_LATE,
    errors.Unavailable: NOT_NOW,
    errors.Busy: NOT_NOW,
    errors.Unauthenticated: NOT_ALLOWED,
    errors.PermissionDenied: NOT_ALLOWED,
}
INTERRUPTED, TERMINATED = 130, 143  # what shells say of commands that SIGINT and SIGTERM ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code, as `klein --help` says. Failures are one line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log lines say nothing that our errors do not
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return _run(argv)
    except KleinError as error:
        return _say(str(error), next((code for kind, code in CODES.items() if isinstance(error, kind)), FAILED))
    except ValueError as error:  # an option that the wire cannot carry
        return _say(str(error), WRONG)
    except KeyboardInterrupt:
        return _say("cancelled", INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        return _say(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), FAILED)


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "completion":
            import shtab

            print(shtab.complete(parser(), arguments.shell))
            return 0
        from kleinclient.cli import commands
    except ModuleNotFoundError as missing:
        if str(missing.name).split(".")[0] not in EXTRA:
            raise
        return _say(f"{missing.name} is not installed; the command needs: pip install 'klein-serve[cli]'", FAILED)
    commands.run(arguments)
    sys.stdout.flush()
    return 0


def _say(message: str, code: int) -> int:
    """One line on standard error, whatever is in it."""
    print("klein:", " ".join(message.split()), file=sys.stderr)
    return code


def _terminate(number: int, frame: object) -> NoReturn:
    """SIGTERM ends the command as Ctrl-C does: the request is cancelled, no file is left half written."""
    raise SystemExit(TERMINATED)
