"""What a program reads while one image is made: every event as a line of JSON on standard output, picture data apart.

    {"event": "accepted", "seed": 7, "size": [256, 256], "steps": 4, ...}
    {"event": "preview", "step": 1, "path": "previews/step-1.jpg", "size_bytes": 1423, ...}
    {"event": "image", "path": "out.png", "size_bytes": 80123, "sha256": "...", "usage": {...}, ...}
    {"event": "error", "reason": "QUEUE_FULL", "retry_after": 2.0, "message": "...", ...}

The last line is the image or the error. Names are those of the library's values; times are seconds.
"""

import json
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kleinclient.errors import KleinError
from kleinclient.events import Accepted, Event, Image, Preview
from kleinclient.stream import ImageStream


class Lines:
    """Prints each event of `stream` as it comes; the image when its file is written."""

    def __init__(self, stream: ImageStream):
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KleinError):
            _print("error", {**vars(error), "violations": [asdict(bad) for bad in error.violations]})

    def show(self, event: Event, path: Path | None = None) -> None:
        """Print any event but the image."""
        if isinstance(event, Image):
            return
        facts = _facts(event, path)
        if isinstance(event, Accepted):
            facts |= {"request_id": self._stream.request_id, "idempotency_key": self._stream.idempotency_key}
        _print(type(event).__name__.lower(), facts)

    def show_result(self, image: Image, path: Path) -> None:
        """Print the image, now that it is at `path`."""
        _print("image", _facts(image, path))


def _facts(event: Event, path: Path | None) -> dict[str, Any]:
    facts = asdict(event)
    if isinstance(event, Preview | Image):
        facts["size_bytes"] = len(facts.pop("data"))
        facts["path"] = None if path is None else str(path)
    return facts


def _print(kind: str, facts: dict[str, Any]) -> None:
    print(json.dumps({"event": kind, **facts}, ensure_ascii=False), flush=True)
