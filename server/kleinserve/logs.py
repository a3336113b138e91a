"""The log: one line an event on standard error, JSON or for a person. It never fails, delays or ends anything.

Whoever logs only puts a line into a bounded queue; a thread writes. A full queue, a reader that is gone or does not
read, a full disk: lines are dropped and counted, and the service goes on. Python's warnings, `logging`, uncaught errors
and what libraries print go the same way. What C code writes to file 2 itself (a crash's last words) does not.
"""

import io
import json
import logging
import os
import queue
import re
import select
import sys
import threading
import traceback
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import structlog

from kleinserve import process
from kleinserve.config import Config

LINES_MAX = 10_000  # that wait; a hundred seconds of a busy server
BATCH_BYTES = 64 * 1024  # of one write
TEXT_MAX = 8192  # characters of one value; a longer one loses its middle
LINE_MAX = 64 * 1024  # characters

log = structlog.get_logger()
Render = Callable[[Any, str, MutableMapping[str, Any]], str]


class Logs:
    """The queue and its thread. `errors` and `output` are open files that nobody else writes to or closes."""

    def __init__(self, errors: int, output: int):
        self._errors, self._output = errors, output
        # Reentrant, which queue.Queue is not: a signal or the garbage collector may log while this thread is putting.
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._counting = threading.RLock()
        self._dropped = 0
        self._is_closed = False
        self._is_torn = False  # the last write ended within a line
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines dropped so far: `klein_log_dropped_total`. May be read from any thread."""
        return self._dropped

    def write(self, line: str) -> None:
        """Write one line, without its end, when there is time; drop it where there is no room. From any thread."""
        if self._is_closed or self._lines.qsize() >= LINES_MAX:
            self._drop(1)
        else:
            self._lines.put(line)

    def announce(self, line: str) -> None:
        """Write one line of the contract to standard output at once, if anybody takes it within a second."""
        process.say(line, self._output)

    def close(self, seconds: float) -> None:
        """Write what waits, for at most `seconds`; drop what comes later. May be called again, and by a signal."""
        self._is_closed = True
        self._lines.put(None)
        self._thread.join(seconds)

    def _drop(self, lines: int) -> None:
        with self._counting:
            self._dropped += lines

    def _work(self) -> None:
        is_open = True
        while is_open:
            lines, length = [self._lines.get()], 0
            while lines[-1] is not None and length < BATCH_BYTES:
                length += len(lines[-1])
                try:
                    lines.append(self._lines.get_nowait())
                except queue.Empty:
                    break
            is_open = lines[-1] is not None
            self._send("".join(f"{line}\n" for line in lines if line is not None))

    def _send(self, text: str) -> None:
        """Write all of it, or drop the lines that were not written whole."""
        rest = (b"\n" if self._is_torn and text else b"") + text.encode(errors="backslashreplace")
        while rest:
            try:
                written = os.write(self._errors, rest)
                self._is_torn = rest[written - 1] != ord("\n")
                rest = rest[written:]
            except BlockingIOError:  # someone made the pipe non-blocking
                with suppress(OSError):
                    select.select([], [self._errors], [])
            except OSError:
                self._drop(rest.lstrip(b"\n").count(b"\n"))
                return


def configure(config: Config) -> Logs:
    """Send everything that this process logs through a new `Logs`, and keep standard output for announcements.

    To be called once, by the main thread. Files 1 and 2 stay open: 1 on /dev/null, so that no library and no child
    writes to standard output; 2 where it was.
    """
    errors, output = _own(2, sys.__stderr__), _own(1, sys.__stdout__)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    logs = Logs(errors, output)
    structlog.configure(
        processors=[_rendering(config, is_terminal=os.isatty(errors))],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_: _Writer(logs.write),
        cache_logger_on_first_use=False,
    )
    _take_pythons_own()
    return logs


def _own(number: int, stream: TextIO | None) -> int:
    """A number of our own for an open file; of /dev/null if it was closed when Python started, whatever it is now."""
    if stream is None:
        return os.open(os.devnull, os.O_WRONLY)
    return os.dup(number)  # not inherited


class _Writer:
    """What structlog calls with a rendered line, by the level's name."""

    def __init__(self, write: Callable[[str], None]):
        self.debug = self.info = self.warning = self.error = self.critical = write


def _rendering(config: Config, *, is_terminal: bool) -> Render:
    """A structlog processor that makes a line of an event and never raises."""
    render: Any = structlog.processors.JSONRenderer(default=_shown)
    if config.log_format == "console":
        render = structlog.dev.ConsoleRenderer(colors=is_terminal, exception_formatter=structlog.dev.plain_traceback)

    def rendered(logger: Any, level: str, event: MutableMapping[str, Any]) -> str:
        event = {
            "timestamp": datetime.now(UTC).isoformat(timespec="microseconds"),
            "level": level,
            "event": event.get("event"),
        } | dict(event)
        try:
            error = event.pop("exc_info", None)
            if (text := _traceback(error)) is not None:
                event["exception"] = text
            line = str(render(logger, level, {key: _cut(value) for key, value in event.items()}))
            if len(line) <= LINE_MAX:
                return line
            problem = f"a line of {len(line)} characters"
        except BaseException as failure:  # whatever a value's repr raises, Rust's panics too
            problem = type(failure).__name__
        return json.dumps(
            {key: _shown(event.get(key)) for key in ("event", "level", "timestamp")} | {"unlogged": problem}
        )

    return rendered


def _traceback(given: object) -> str | None:
    """The traceback of what `exc_info` may be: True, an error, or sys.exc_info()'s three."""
    error = sys.exc_info()[1] if given is True else given[1] if isinstance(given, tuple) else given
    if not isinstance(error, BaseException):
        return None
    try:
        return "".join(traceback.format_exception(error)).rstrip()
    except BaseException as failure:
        return f"{type(error).__name__} (its traceback cannot be shown: {type(failure).__name__})"


def _cut(value: object) -> object:
    if not isinstance(value, str) or len(value) <= TEXT_MAX:
        return value
    return f"{value[: TEXT_MAX // 4]} … {value[-TEXT_MAX * 3 // 4 :]}"  # the end of a traceback says most


def _shown(value: object) -> str:
    try:
        return str(_cut(value if type(value) is str else repr(value)))
    except BaseException as failure:
        return f"<{type(value).__name__}: {type(failure).__name__}>"


class _Text(io.TextIOBase):
    """Takes the place of sys.stdout and sys.stderr: what is printed becomes events, one a line."""

    encoding = "utf-8"

    def __init__(self, name: str, number: int):
        self._name, self._number = name, number
        self._begun = threading.local()  # a line that has no end yet, of each thread

    def write(self, text: str) -> int:
        *lines, rest = re.split("[\r\n]", getattr(self._begun, "text", "") + text)
        if len(rest) > TEXT_MAX:
            lines, rest = [*lines, rest], ""
        self._begun.text = rest
        for line in filter(str.strip, lines):
            log.warning(line, logger=self._name)
        return len(text)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """For those who hand the file itself to a child."""
        return self._number


class _Records(logging.Handler):
    """Passes on what libraries log through Python's `logging`."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except BaseException:  # arguments that do not fit the text
            event = _shown(record.msg)
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        log.log(level, event, logger=record.name, exc_info=record.exc_info)


def _take_pythons_own() -> None:
    sys.stdout, sys.stderr = cast(TextIO, _Text("stdout", 1)), cast(TextIO, _Text("stderr", 2))
    logging.basicConfig(level=logging.WARNING, handlers=[_Records()], force=True)
    logging.captureWarnings(True)
    for talkative in ("torchao", "torch.utils._pytree"):  # tell of kernels that are not for this machine
        logging.getLogger(talkative).setLevel(logging.ERROR)
    sys.excepthook = lambda kind, error, trace: log.critical("uncaught", exc_info=error)
    sys.unraisablehook = _unraisable
    threading.excepthook = _thread_died


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    log.error("unraisable", during=found.err_msg, object=_shown(found.object), exc_info=found.exc_value)


def _thread_died(found: threading.ExceptHookArgs) -> None:
    if found.exc_type is not SystemExit:
        log.critical("uncaught", thread=found.thread and found.thread.name, exc_info=found.exc_value)
