"""Opens the database that `--ledger` names: its file's owner, its settings, its schema. Knows no record."""

import fcntl
import os
from pathlib import Path
from typing import Any, Literal

import alembic.command
import alembic.config
import platformdirs
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from kleinserve.config import masked
from kleinserve.usage.ledger import BadLedger

_MIGRATION_LOCK = 0x6B6C65_01  # "kle": PostgreSQL's advisory locks are numbers
WRITE_LOCK = 0x6B6C65_02
_OLDER = "--ledger: the database's schema is older than this version: run `kleinserve usage migrate`"


def location(ledger: str) -> URL:
    """The database of the setting: `sqlite` is usage.db in the user's data directory. Raises: BadLedger."""
    if ledger == "sqlite":
        return URL.create("sqlite", database=str(platformdirs.user_data_path("kleinserve") / "usage.db"))
    try:
        url = make_url(ledger)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise BadLedger("--ledger is neither sqlite, none nor a database URL") from None  # it may hold a password
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise BadLedger(f"--ledger {backend}: only SQLite and PostgreSQL are supported")
    if url.database in (None, "", ":memory:") or url.query:
        raise BadLedger("--ledger: SQLite needs a plain file, as sqlite:////path/usage.db")
    return URL.create("sqlite", database=str(Path(str(url.database)).absolute()))


def shown(url: URL) -> str:
    """The URL as it may be printed: no password, also where that is a parameter."""
    return masked(url.render_as_string(hide_password=False))


class FileOwner:
    """Holds a SQLite file for one server: the lock on the file beside it ends with the process, however that ends.

    A POSIX lock, since child processes do not inherit it: one that outlives a killed server blocks nobody. What it
    does not see is a second owner in the same process, therefore `_held`.
    """

    _held: set[Path] = set()  # noqa: RUF012 - shared by all on purpose

    def __init__(self, database: str):
        path = Path(database).resolve()
        self._lock = path.with_name(path.name + ".lock")
        if self._lock in self._held:
            raise BadLedger(f"--ledger: {path} is held by this server already")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise BadLedger(f"--ledger: cannot write to {path.parent}: {error.strerror}") from error
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise BadLedger(f"--ledger: another running server holds {path}") from error
        self._held.add(self._lock)

    def release(self) -> None:
        os.close(self._file)
        self._held.discard(self._lock)


def connect(url: URL, timeout_seconds: float, use: Literal["write", "read"]) -> Engine:
    """An engine whose transactions write, or read one snapshot; each wait of them is bounded by `timeout_seconds`."""
    if url.get_backend_name() == "postgresql":
        return _postgresql(url, timeout_seconds, use)
    engine = create_engine(url, connect_args={"check_same_thread": False})
    pragmas = ["journal_mode = WAL", "synchronous = FULL"] if use == "write" else ["query_only = ON"]

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own
        for pragma in (f"busy_timeout = {int(timeout_seconds * 1000)}", *pragmas):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if use == "write" else "BEGIN")

    return engine


def _postgresql(url: URL, timeout_seconds: float, use: Literal["write", "read"]) -> Engine:
    milliseconds = int(timeout_seconds * 1000)
    limits = {"statement_timeout": milliseconds, "lock_timeout": milliseconds}
    if use == "write":  # one that is paused in its transaction holds the lock that all writers wait for
        limits["idle_in_transaction_session_timeout"] = milliseconds // 2
    return create_engine(
        url,
        isolation_level="READ COMMITTED" if use == "write" else "REPEATABLE READ",
        pool_pre_ping=use == "read",
        connect_args={
            "application_name": "kleinserve",
            "connect_timeout": max(2, int(timeout_seconds)),  # 2: libpq's least
            "tcp_user_timeout": milliseconds,
            "options": " ".join(f"-c {limit}={value}" for limit, value in limits.items()),
        },
    )


def alembic_config(connection: Connection | None = None) -> alembic.config.Config:
    """Where Alembic finds the migrations, and the connection that it runs them on."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def migrate(engine: Engine) -> None:
    """Bring the schema up to date, in one transaction. Raises: BadLedger, where it is newer than this server."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))  # Python may be slow
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        if _age(connection) != "current":
            alembic.command.upgrade(alembic_config(connection), "head")


def _age(connection: Connection) -> Literal["empty", "older", "current"]:
    revision = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(alembic_config())
    if revision is None:
        return "empty"
    if revision not in {script.revision for script in scripts.walk_revisions()}:
        raise BadLedger(f"--ledger: the database has the schema {revision}, of a newer kleinserve than this one")
    return "current" if revision == scripts.get_current_head() else "older"


def check(engine: Engine) -> None:
    """Make an empty database's schema, and a SQLite file's current. Raises: BadLedger, also where it cannot be opened.

    PostgreSQL is shared by servers that may be older: its schema changes by command alone.
    """
    try:
        with engine.connect() as connection:
            age = _age(connection)
        if age == "older" and engine.dialect.name == "postgresql":
            raise BadLedger(_OLDER)
        if age != "current":
            migrate(engine)
    except SQLAlchemyError as error:
        raise BadLedger(f"--ledger: cannot open {shown(engine.url)}: {reason(error)}") from error


def require_current(engine: Engine) -> None:
    """Raises: BadLedger, where the schema is not exactly this version's."""
    with engine.connect() as connection:
        if _age(connection) != "current":
            raise BadLedger(_OLDER)


def reason(error: BaseException) -> str:
    """The driver's own words, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
