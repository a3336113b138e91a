"""The `klein` command. Importing this needs nothing beyond the library; running it needs the `cli` extra."""

import os
import sys
from collections.abc import Sequence

from kleinclient.cli.arguments import parser
from kleinclient.errors import KleinError

EXTRA = {"PIL", "rich", "textual_image"}
CANCELLED = 130  # what a shell says of a command that SIGINT ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 failed, 2 bad arguments, 130 interrupted. Failures are one line."""
    try:
        return _run(argv)
    except KleinError as error:
        return _say(f"{error}", 1)
    except ValueError as error:  # an option that the wire cannot carry
        return _say(f"{error}", 2)
    except KeyboardInterrupt:
        return _say("cancelled", CANCELLED)
    except BrokenPipeError:  # whoever read our output has gone; there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), 1)


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    try:
        from kleinclient.cli import commands
    except ModuleNotFoundError as missing:
        if str(missing.name).split(".")[0] not in EXTRA:
            raise
        return _say(f"{missing.name} is not installed; the command needs: pip install 'klein-serve[cli]'", 1)
    commands.run(arguments)
    sys.stdout.flush()
    return 0


def _say(message: str, code: int) -> int:
    """One line on standard error, whatever is in it."""
    print("klein:", " ".join(message.split()), file=sys.stderr)
    return code
