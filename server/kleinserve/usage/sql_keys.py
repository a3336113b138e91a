"""Keys in the ledger's database: `job` says whose each is and how far it came, `owner` which servers live.

Every piece of work here runs on the ledger's writer, in its turn (records.py): no other server that shares the database
writes between what it reads and what it writes. So reading an entry, deciding and writing is atomic.
"""

import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)

from kleinserve.core import Usage, UsageRecord
from kleinserve.usage import records
from kleinserve.usage.keys import Claim, Entry, KeyState, LostOwnership
from kleinserve.usage.records import now
from kleinserve.usage.schema import JOB, LEDGER, OWNER, USAGE_COLUMNS
from kleinserve.usage.sql import SqlLedger

ALWAYS = 2**62  # microseconds: SQLite's one server needs not say that it lives
SWEEP_SECONDS = 60.0
DROP_MAX = 500  # keys in one transaction, so that a delivery beside it does not wait long
OWNER_OF_FILE = "file"


class SqlKeys:
    """`Keys`, durable. Of servers on one PostgreSQL each has an owner id, and lives while it says so in time."""

    @classmethod
    async def open(
        cls,
        ledger: SqlLedger,
        *,
        key_seconds: float,
        keys_max: int,
        owner_seconds: float = 15.0,
        owner: str = "",
        address: str = "",
    ) -> "SqlKeys":
        """Become an owner of keys. Raises: LedgerUnavailable.

        `owner_seconds`: without a word for so long, a server is gone. `owner`: a name that is the same after a restart;
        "": a new one. `address`: where other servers reach this one; `reached_at` says it later.
        """
        keys = cls(ledger, key_seconds, keys_max, owner_seconds, owner, address)
        await ledger.writer.run(keys._register)
        ledger.writer.every(owner_seconds / 3 if ledger.is_shared else SWEEP_SECONDS, keys._beat)
        return keys

    def __init__(
        self, ledger: SqlLedger, key_seconds: float, keys_max: int, owner_seconds: float, owner: str, address: str
    ):
        self._ledger, self._writer = ledger, ledger.writer
        self._key_microseconds, self._keys_max = int(key_seconds * 1e6), keys_max
        self._owner_microseconds = int(owner_seconds * 1e6) if ledger.is_shared else ALWAYS
        self._owner = owner or (str(uuid.uuid4()) if ledger.is_shared else OWNER_OF_FILE)
        self._address, self._epoch = address, 0
        self._count = 0  # about how many keys there are; touched by the writer's thread alone
        self._sweep_at = 0.0
        self._is_closed = False
        self.salt = b""

    async def claim(self, caller: str, key: str, digest: bytes, request_id: str, seed: int) -> Claim:
        """As the protocol says."""
        new = {"caller": caller, "key": key, "digest": digest, "request_id": request_id, "seed": str(seed)}
        try:
            return await self._writer.run(partial(self._claim, new=new))
        except BaseException:  # it may have been written all the same
            self._free(caller, key, request_id)
            raise

    async def find(self, caller: str, key: str) -> Entry | None:
        """As the protocol says."""
        return await self._writer.run(partial(self._find, caller=caller, key=key))

    async def commit(self, record: UsageRecord, entry: Entry, *others: tuple[UsageRecord, Entry]) -> None:
        """As the protocol says."""
        await self._ledger.timed(partial(self._commit, new=((record, entry), *others)))

    def abandon(self, entry: Entry, failed: UsageRecord, doubted_id: str, taken_over: Callable[[], None]) -> None:
        """As the protocol says."""
        abandon = partial(self._abandon, entry=entry, failed=failed, doubted_id=doubted_id)
        self._writer.post(abandon, lambda is_done: None if is_done else taken_over())

    def delivered(self, entry: Entry) -> None:
        """As the protocol says."""
        statement = update(JOB).where(*_of(entry.caller, entry.key, entry.request_id, KeyState.COMMITTED))
        self._writer.post(lambda connection: connection.execute(statement.values(state=KeyState.DELIVERED.value)))

    def free(self, entry: Entry) -> None:
        """As the protocol says."""
        self._free(entry.caller, entry.key, entry.request_id)

    def _free(self, caller: str, key: str, request_id: str) -> None:
        conditions = [*_of(caller, key, request_id, KeyState.RUNNING), *self._is_mine()]
        self._writer.post(partial(self._delete, conditions=conditions))

    def forget(self, entry: Entry) -> None:
        """As the protocol says."""
        self._writer.post(partial(self._delete, conditions=_of(entry.caller, entry.key, entry.request_id)))

    def reached_at(self, address: str) -> None:
        """As the protocol says."""
        self._address = address
        self._writer.post(self._live)

    def close(self) -> None:
        """As the protocol says."""
        self._is_closed = True
        self._writer.post(self._leave)

    # What follows runs on the writer's thread, in its turn.

    def _register(self, connection: Connection) -> None:
        """Begin an epoch, later than any that this owner had: also where its row was dropped meanwhile."""
        self.salt = connection.execute(select(LEDGER.c.salt)).scalar_one()
        former = connection.execute(select(OWNER.c.epoch).where(OWNER.c.id == self._owner)).scalar()
        self._epoch = max(former or 0, now(connection)) + 1
        connection.execute(delete(OWNER).where(OWNER.c.id == self._owner))
        self._live(connection)
        self._count = _count(connection)

    def _live(self, connection: Connection) -> None:
        """Say that this server lives, unless a later process is in its place."""
        alive_until = now(connection) + self._owner_microseconds
        statement = records.insert(connection.dialect.name, OWNER).values(
            id=self._owner, epoch=self._epoch, address=self._address, alive_until_microseconds=alive_until
        )
        statement = statement.on_conflict_do_update(
            index_elements=["id"],
            set_={"alive_until_microseconds": alive_until, "address": self._address},
            where=OWNER.c.epoch == self._epoch,
        )
        connection.execute(statement)

    def _leave(self, connection: Connection) -> None:
        mine = update(OWNER).where(OWNER.c.id == self._owner, OWNER.c.epoch == self._epoch)
        connection.execute(mine.values(alive_until_microseconds=0))

    def _beat(self, connection: Connection) -> None:
        """Say that this server lives; every minute, drop what is too old."""
        if self._ledger.is_shared and not self._is_closed:
            self._live(connection)
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            self._sweep(connection)

    def _sweep(self, connection: Connection) -> None:
        if drop(connection, now(connection) - self._key_microseconds) == DROP_MAX:
            self._writer.post(self._sweep)
        self._count = _count(connection)

    def _claim(self, connection: Connection, new: dict[str, Any]) -> Claim:
        entry, seed = self._read(connection, new["caller"], new["key"]), new["seed"]
        if entry is None:
            return Claim(True, self._take(connection, new, seed))
        if entry.state is KeyState.RUNNING and not entry.is_owner_alive:
            return Claim(True, self._take(connection, new, str(entry.seed) if entry.digest == new["digest"] else seed))
        if entry.state is KeyState.COMMITTED and not entry.is_owner_alive and entry.digest == new["digest"]:
            mine = {"owner": self._owner, "epoch": self._epoch}
            connection.execute(update(JOB).where(*_of(entry.caller, entry.key, entry.request_id)).values(mine))
            return Claim(True, replace(entry, is_mine=True, is_owner_alive=True, address=self._address))
        # The same claim again, after a transaction whose end was not heard of, has won.
        return Claim(entry.is_mine and entry.request_id == new["request_id"], entry)

    def _take(self, connection: Connection, new: dict[str, Any], seed: str) -> Entry:
        """Make the key this request's, in the place of whatever was there."""
        if self._count >= self._keys_max:
            self._evict(connection)
        self._count += 1
        row = _EMPTY | new | {"seed": seed, "owner": self._owner, "epoch": self._epoch}
        row["create_microseconds"] = now(connection)
        connection.execute(_upsert(connection.dialect.name), row)
        return _entry(row | {"address": self._address}, is_mine=True, is_owner_alive=True)

    def _find(self, connection: Connection, caller: str, key: str) -> Entry | None:
        entry = self._read(connection, caller, key)
        is_free = entry is None or (entry.state is KeyState.RUNNING and not entry.is_owner_alive)
        return None if is_free else entry

    def _read(self, connection: Connection, caller: str, key: str) -> Entry | None:
        """The entry, unless it is too old."""
        row = connection.execute(_READ, {"of_caller": caller, "of_key": key}).mappings().one_or_none()
        if row is None:
            return None
        time_now = now(connection)
        is_mine = (row["owner"], row["epoch"]) == (self._owner, self._epoch)
        entry = _entry(row, is_mine, is_mine or (row["alive_until_microseconds"] or 0) >= time_now)
        is_old = entry.create_microseconds <= time_now - self._key_microseconds
        return None if is_old and not (entry.state is KeyState.RUNNING and entry.is_owner_alive) else entry

    def _commit(self, connection: Connection, new: Sequence[tuple[UsageRecord, Entry]]) -> None:
        """Looks at all keys before it writes: what is declined has written nothing."""
        if not all(self._may_commit(connection, record, entry) for record, entry in new):
            raise LostOwnership("the key is no longer this server's")
        for record, entry in new:
            usage = {name: getattr(record.usage, name) for name in USAGE_COLUMNS}
            committed = {"state": KeyState.COMMITTED.value, "record_id": record.record_id, **usage}
            running = _of(entry.caller, entry.key, entry.request_id, KeyState.RUNNING)
            connection.execute(update(JOB).where(*running).values(committed))
            records.add(connection, record)

    def _may_commit(self, connection: Connection, record: UsageRecord, entry: Entry) -> bool:
        """Whether the key is this job's and this server's, or has been committed with this very record."""
        mine = and_(JOB.c.state == KeyState.RUNNING.value, *self._is_mine())
        same = _of(entry.caller, entry.key, entry.request_id)
        found = select(JOB.c.state).where(*same, or_(mine, JOB.c.record_id == record.record_id))
        return connection.execute(found).one_or_none() is not None

    def _abandon(self, connection: Connection, entry: Entry, failed: UsageRecord, doubted_id: str) -> bool:
        """False: another server has the key and the record."""
        doubted = [*_of(entry.caller, entry.key, entry.request_id), JOB.c.record_id == doubted_id]
        self._delete(connection, [*doubted, *self._is_mine()])
        if connection.execute(select(JOB.c.state).where(*doubted)).one_or_none() is not None:
            return False
        records.replace(connection, doubted_id, failed)
        return True

    def _delete(self, connection: Connection, conditions: list[ColumnElement[bool]]) -> None:
        self._count -= connection.execute(delete(JOB).where(*conditions)).rowcount

    def _evict(self, connection: Connection) -> None:
        """Make room, for more than one so that looking through all is rare: the oldest of the caller with the most."""
        self._count = _count(connection)
        excess = self._count - self._keys_max + 1
        if excess <= 0:
            return
        most = select(JOB.c.caller).where(JOB.c.state != KeyState.RUNNING.value).group_by(JOB.c.caller)
        caller = connection.execute(most.order_by(func.count().desc()).limit(1)).scalar()
        for state in (KeyState.DELIVERED, KeyState.COMMITTED):
            ended = select(JOB.c.caller, JOB.c.key).where(JOB.c.caller == caller, JOB.c.state == state.value)
            room = min(DROP_MAX, max(excess, self._keys_max // 100))
            oldest = ended.order_by(JOB.c.create_microseconds).limit(room)
            dropped = connection.execute(delete(JOB).where(tuple_(JOB.c.caller, JOB.c.key).in_(oldest))).rowcount
            self._count -= dropped
            if dropped:
                return

    def _is_mine(self) -> list[ColumnElement[bool]]:
        return [JOB.c.owner == self._owner, JOB.c.epoch == self._epoch]


def drop(connection: Connection, before: int) -> int:
    """Forget up to DROP_MAX keys that are older, but for those that run; how many."""
    lives = exists().where(
        OWNER.c.id == JOB.c.owner, OWNER.c.epoch == JOB.c.epoch, OWNER.c.alive_until_microseconds >= now(connection)
    )
    is_over = or_(JOB.c.state != KeyState.RUNNING.value, ~lives)
    oldest = select(JOB.c.caller, JOB.c.key).where(JOB.c.create_microseconds <= before, is_over)
    oldest = oldest.order_by(JOB.c.create_microseconds).limit(DROP_MAX)
    connection.execute(delete(OWNER).where(OWNER.c.alive_until_microseconds <= before))
    return connection.execute(delete(JOB).where(tuple_(JOB.c.caller, JOB.c.key).in_(oldest))).rowcount


def prune(engine: Engine, before: int) -> int:
    """Forget all keys from before `before`, but for those that run, in small transactions; how many."""
    dropped = 0
    while True:
        with engine.begin() as connection:
            records.in_turn(connection)
            last = drop(connection, before - 1)
        dropped += last
        if last < DROP_MAX:
            return dropped


def _count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(JOB)).scalar_one()


_EMPTY = dict.fromkeys(USAGE_COLUMNS) | {"state": KeyState.RUNNING.value, "record_id": ""}
_READ = (
    select(JOB, OWNER.c.address, OWNER.c.alive_until_microseconds)
    .outerjoin(OWNER, (OWNER.c.id == JOB.c.owner) & (OWNER.c.epoch == JOB.c.epoch))
    .where(JOB.c.caller == bindparam("of_caller"), JOB.c.key == bindparam("of_key"))
)


@functools.cache
def _upsert(dialect: str) -> Any:
    statement = records.insert(dialect, JOB)
    others = {column.name: statement.excluded[column.name] for column in JOB.c if not column.primary_key}
    return statement.on_conflict_do_update(index_elements=list(JOB.primary_key), set_=others)


def _of(
    caller: str, key: str, request_id: str | None = None, state: KeyState | None = None
) -> list[ColumnElement[bool]]:
    conditions = [JOB.c.caller == caller, JOB.c.key == key]
    if request_id is not None:
        conditions.append(JOB.c.request_id == request_id)
    if state is not None:
        conditions.append(JOB.c.state == state.value)
    return conditions


def _entry(row: Mapping[Any, Any], is_mine: bool, is_owner_alive: bool) -> Entry:
    return Entry(
        **{name: row[name] for name in ("caller", "key", "digest", "request_id", "record_id", "create_microseconds")},
        seed=int(row["seed"]),
        state=KeyState(row["state"]),
        is_mine=is_mine,
        is_owner_alive=is_owner_alive,
        address=row["address"] or "",
        usage=Usage(**{name: row[name] for name in USAGE_COLUMNS}) if row["record_id"] else None,
    )
