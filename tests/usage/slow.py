"""A transaction that hangs for as long as a test wants, in a real database, and is heard of late or never."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from kleinserve.usage.sql import SqlLedger
from sqlalchemy import Connection, event

Where = Literal["statement", "commit", "lost"]
SECONDS_MAX = 60.0
TIMEOUT_SECONDS = 1.0  # enough to come to the COMMIT, and soon over


class Hang:
    """`began` is set when it hangs, `release` ends it."""

    def __init__(self, where: Where):
        self._where = where
        self.began, self.release = threading.Event(), threading.Event()

    def _hang(self) -> None:
        if not self.began.is_set():
            self.began.set()
            assert self.release.wait(SECONDS_MAX)

    def statement(self, *_: Any) -> None:
        if self._where == "statement":
            self._hang()

    def commit(self, connection: Connection) -> None:
        if self._where == "statement" or self.began.is_set():
            return
        driver = connection.connection.dbapi_connection
        assert driver is not None
        driver.commit()
        self._hang()
        if self._where == "lost":
            driver.close()


@contextmanager
def held(ledger: SqlLedger, where: Where) -> Iterator[Hang]:
    """The next transaction hangs: before a statement; in its COMMIT, durable already; or there, and then the connection
    is lost, so that nobody hears how it ended. Whoever waits meanwhile gives up after a second.
    """
    hang, writer, engine = Hang(where), ledger.writer, ledger.writer._engine
    timeout_seconds, writer._timeout = writer._timeout, TIMEOUT_SECONDS
    event.listen(engine, "before_cursor_execute", hang.statement)
    event.listen(engine, "commit", hang.commit)
    try:
        yield hang
    finally:
        hang.release.set()
        writer._timeout = timeout_seconds
