"""Errors in OpenAI's form: status, headers and body."""

import math
from typing import Any

from kleinserve.errors import KleinError, LedgerUnavailable
from kleinserve.web.openai.fields import told

_STATUSES = {  # by gRPC's status; the others are 500
    "INVALID_ARGUMENT": (400, "invalid_request_error"),
    "UNAUTHENTICATED": (401, "authentication_error"),
    "PERMISSION_DENIED": (403, "permission_error"),
    "NOT_FOUND": (404, "invalid_request_error"),
    "ALREADY_EXISTS": (409, "invalid_request_error"),
    "FAILED_PRECONDITION": (409, "invalid_request_error"),
    "RESOURCE_EXHAUSTED": (429, "rate_limit_error"),
    "UNAVAILABLE": (503, "server_error"),
    "DEADLINE_EXCEEDED": (504, "server_error"),
}


def status(error: KleinError) -> int:
    return _STATUSES.get(error.status, (500, ""))[0]


def body(error: KleinError, note: str = "") -> dict[str, Any]:
    """The answer's JSON; `note` is added to the message."""
    message, field = told(error)
    kind = _STATUSES.get(error.status, (500, "server_error"))[1]
    return {"error": {"message": message + note, "type": kind, "param": field, "code": error.reason}}


def plain(message: str, code: str) -> dict[str, Any]:
    """The JSON of what is refused before it is a call."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def headers(error: KleinError, *, is_admitted: bool = False, is_keyed: bool = False) -> dict[str, str]:
    """What tells the package whether to try again by itself: where that helps, and bills nothing twice.

    `is_admitted`: an image was begun; `is_keyed`: the caller gave a key.
    """
    is_in_doubt = is_admitted and not is_keyed and isinstance(error, LedgerUnavailable)  # it may be recorded yet
    should_retry = error.retry_seconds is not None and not is_in_doubt
    sent = {"x-should-retry": "true" if should_retry else "false"}
    if error.retry_seconds is not None:
        sent["retry-after"] = str(math.ceil(error.retry_seconds))
    return sent
