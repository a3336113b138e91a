"""`kleinserve token NAME`: a new token, which is stored nowhere."""

import secrets
import sys

from kleinserve.identity.callers import NAME, token_digest

TOKEN_BYTES = 32


def main(name: str) -> int:
    """Print a new token on standard output, and what the callers file needs of it on standard error.

    Returns the exit code: 2 for a name that no caller can have.
    """
    if not NAME.fullmatch(name):
        print("kleinserve: a caller's name is 1 to 64 of a-z 0-9 . _ -", file=sys.stderr)
        return 2
    token = secrets.token_urlsafe(TOKEN_BYTES)
    table = f'"{name}"' if "." in name else name  # a dot would begin a table within
    print(f'[callers.{table}]\ntoken_sha256 = ["{token_digest(token)}"]', file=sys.stderr)
    print(token, flush=True)
    return 0
