"""A key has one winner, is billed once, and is remembered; in memory and durably (usage/sql_keys.py)."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from kleinserve.core import UsageRecord
from kleinserve.errors import LedgerUnavailable
from kleinserve.usage import commands
from kleinserve.usage.keys import Claim, Entry, Keys, KeyState, LostOwnership, MemoryKeys
from kleinserve.usage.sql import SqlLedger
from kleinserve.usage.sql_keys import SqlKeys

from tests.usage.postgres import Postgres
from tests.usage.some import PAID, record, rows
from tests.usage.test_database import change
from tests.usage.test_outage import TICK_SECONDS, hanging, locked, up
from tests.usage.test_sql import started

RUNNING, COMMITTED, DELIVERED = KeyState


class Server:
    """One server's ledger and keys on a database; any number may share a PostgreSQL."""

    def __init__(self, url: str, **settings: Any):
        self.url = url
        self.settings: dict[str, Any] = {"key_seconds": 3600, "keys_max": 1000, "owner_seconds": 3600} | settings
        self.timeout_seconds = self.settings.pop("timeout_seconds", 5.0)

    async def __aenter__(self) -> "Server":
        self.ledger = SqlLedger(self.url, timeout_seconds=self.timeout_seconds)
        self.keys = await SqlKeys.open(self.ledger, **self.settings)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.ledger.close()  # without keys.close(): it dies

    async def listed(self) -> list[UsageRecord]:
        return [each async for each in self.ledger.records(0, 2**62, None, "")]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Makes keys with the given settings, of each kind."""
    async with AsyncExitStack() as stack:

        async def made(key_seconds: float = 3600, keys_max: int = 1000) -> Keys:
            settings: dict[str, Any] = {"key_seconds": key_seconds, "keys_max": keys_max}
            if request.param == "memory":
                return MemoryKeys(**settings)
            sqlite = f"sqlite:///{tmp_path}/usage.db"
            url = sqlite if request.param == "sqlite" else request.getfixturevalue("postgres").database()
            return (await stack.enter_async_context(Server(url, **settings))).keys

        yield made


async def claimed(keys: Keys, key: str = "k", request_id: str = "r1", caller: str = "web", seed: int = 7) -> Claim:
    return await keys.claim(caller, key, b"digest", request_id, seed)


async def committed(keys: Keys, key: str, caller: str = "web") -> Entry:
    claim = await claimed(keys, key, caller=caller)
    await keys.commit(record(caller=caller), claim.entry)
    return claim.entry


async def test_who_claims_first_has_the_key(make: Any) -> None:
    """The first claim wins; a later one learns whose the key is, and another caller's key of that name is another."""
    keys = await make()
    first = await claimed(keys, seed=2**64 - 1)
    assert first.won
    entry = first.entry
    assert (entry.state, entry.digest, entry.request_id, entry.seed) == (RUNNING, b"digest", "r1", 2**64 - 1)
    assert (entry.is_mine, entry.is_owner_alive, entry.usage) == (True, True, None)
    assert await claimed(keys, request_id="r2") == Claim(False, entry)
    assert await keys.find("web", "k") == entry
    assert (await claimed(keys, caller="batch")).won
    assert await keys.find("web", "other") is None
    assert len(keys.salt) == 32


async def test_a_key_goes_from_running_to_delivered(make: Any) -> None:
    """A commit stores what was billed, a delivery that it was delivered, and the same commit again changes nothing."""
    keys = await make()
    entry = (await claimed(keys)).entry
    keys.delivered(entry)  # not committed: nothing
    billed = record()
    await keys.commit(billed, entry)
    await keys.commit(billed, entry)
    found = await keys.find("web", "k")
    assert (found.state, found.record_id, found.usage) == (COMMITTED, billed.record_id, PAID)
    keys.delivered(entry)
    assert (await keys.find("web", "k")).state is DELIVERED
    await keys.commit(billed, entry)
    assert (await keys.find("web", "k")).state is DELIVERED


async def test_a_job_that_ends_without_an_image_frees_its_key(make: Any) -> None:
    """Free forgets a running key and no other; forget forgets it however far it came; the next claim wins."""
    keys = await make()
    keys.free((await claimed(keys)).entry)
    second = await claimed(keys, request_id="r2")
    assert second.won
    keys.free((await claimed(keys, "other")).entry)
    await keys.commit(record(), second.entry)
    keys.free(second.entry)
    assert (await keys.find("web", "k")).state is COMMITTED
    keys.forget(second.entry)
    assert await keys.find("web", "k") is None


async def test_a_key_that_was_given_up_is_not_committed(make: Any) -> None:
    """Whoever commits a key that was freed, or that another request has by now, has lost it and leaves it alone."""
    keys = await make()
    entry = (await claimed(keys)).entry
    keys.free(entry)
    with pytest.raises(LostOwnership):
        await keys.commit(record(), entry)
    await claimed(keys, request_id="r2")
    for late in (keys.free, keys.forget, keys.delivered):
        late(entry)
    with pytest.raises(LostOwnership):
        await keys.commit(record(), entry)
    found = await keys.find("web", "k")
    assert (found.request_id, found.state) == ("r2", RUNNING)


async def test_of_many_claims_at_once_one_wins(make: Any) -> None:
    """Fifty claims of one key in the same moment have one winner, whom the others see."""
    keys = await make()
    claims = await asyncio.gather(*(claimed(keys, request_id=f"r{n}") for n in range(50)))
    (winner,) = [claim for claim in claims if claim.won]
    assert {claim.entry.request_id for claim in claims} == {winner.entry.request_id}


async def test_old_keys_are_unknown(make: Any) -> None:
    """After its seconds a key is free for any request, but not while its job runs."""
    keys = await make(key_seconds=0)
    entry = (await claimed(keys)).entry
    assert not (await claimed(keys, request_id="r2")).won
    await keys.commit(record(), entry)
    assert await keys.find("web", "k") is None
    assert (await claimed(keys, request_id="r3")).won


async def test_who_floods_the_memory_loses_his_own_keys(make: Any) -> None:
    """Beyond the bound the flooding caller's oldest go, delivered ones first; running keys and other callers' stay."""
    keys = await make(keys_max=10)
    for n in range(3):
        await committed(keys, f"b{n}", "batch")
    await claimed(keys, "running")
    keys.delivered(await committed(keys, "delivered"))
    for n in range(30):
        await committed(keys, f"w{n}")
        if n == 6:
            assert await keys.find("web", "delivered") is None
    there = [f"w{n}" for n in range(30) if await keys.find("web", f"w{n}")]
    assert there == [f"w{n}" for n in range(24, 30)]
    assert (await keys.find("web", "running")).state is RUNNING
    assert all([await keys.find("batch", f"b{n}") for n in range(3)])


async def test_a_commit_with_a_key_is_a_record(url: str) -> None:
    """The record and the key's state come together; a commit that lost the key records nothing."""
    async with Server(url) as server:
        entry = (await claimed(server.keys)).entry
        billed = record()
        await server.keys.commit(billed, entry)
        await server.keys.commit(billed, entry)
        server.keys.forget(entry)
        with pytest.raises(LostOwnership):
            await server.keys.commit(record(), entry)
        assert await server.listed() == [billed]


async def test_restart_on_sqlite(tmp_path: Path) -> None:
    """What a killed server left: running keys are free, billed ones are drawn again, delivered ones remembered."""
    url = f"sqlite:///{tmp_path}/usage.db"
    async with Server(url) as server:
        salt = server.keys.salt
        same, other = (await claimed(server.keys, "same")).entry, (await claimed(server.keys, "other")).entry
        lost = await committed(server.keys, "lost")
        sent = await committed(server.keys, "sent")
        server.keys.delivered(sent)
    async with Server(url) as server:
        assert server.keys.salt == salt
        assert await server.keys.find("web", "same") is None
        again = await claimed(server.keys, "same", "r2", seed=99)
        assert (again.won, again.entry.state, again.entry.request_id) == (True, RUNNING, "r2")
        assert again.entry.seed == same.seed, "the caller was told this seed"
        changed = await server.keys.claim("web", "other", b"another", "r3", 99)
        assert (changed.won, changed.entry.seed, changed.entry.digest) == (True, 99, b"another")
        assert not (await server.keys.claim("web", "lost", b"another", "r4", 99)).won
        redraw = await claimed(server.keys, "lost", "r5", seed=99)
        assert (redraw.won, redraw.entry.state) == (True, COMMITTED)
        assert (redraw.entry.request_id, redraw.entry.seed, redraw.entry.usage) == ("r1", lost.seed, PAID)
        waits = await claimed(server.keys, "lost", "r6")
        assert (waits.won, waits.entry.is_mine) == (False, True)
        server.keys.delivered(redraw.entry)
        for key in ("lost", "sent"):
            gone = await claimed(server.keys, key, "r7")
            assert (gone.won, gone.entry.state, gone.entry.usage) == (False, DELIVERED, PAID)
        assert len(await server.listed()) == 2
        with pytest.raises(LostOwnership):
            await server.keys.commit(record(), other)


async def test_four_servers_race_for_200_keys(postgres: Postgres) -> None:
    """Four servers on one PostgreSQL that claim the same 200 keys have 200 single winners, and the losers know them."""
    url = postgres.database()
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server(url, address=f"host{n}:1")) for n in range(4)]
        claims = await asyncio.gather(
            *(claimed(server.keys, f"k{n}", f"r{index}") for n in range(200) for index, server in enumerate(servers))
        )
    for n in range(200):
        of_key = claims[4 * n : 4 * n + 4]
        (winner,) = [index for index, claim in enumerate(of_key) if claim.won]
        assert {claim.entry.request_id for claim in of_key} == {f"r{winner}"}
        assert all(claim.entry.address == f"host{winner}:1" for claim in of_key)
        assert all(claim.entry.is_owner_alive for claim in of_key)


async def test_a_dead_servers_keys_are_taken_over_once(postgres: Postgres) -> None:
    """Of two that claim what a dead server ran one gets each key; delivered ones stay; what it commits late is void."""
    url = postgres.database()
    async with Server(url, address="dead:1") as dead, Server(url) as one, Server(url) as two:
        running = [(await claimed(dead.keys, f"k{n}", "dead")).entry for n in range(81)]
        unsent = await committed(dead.keys, "unsent")
        dead.keys.delivered(await committed(dead.keys, "sent"))
        entry = (await claimed(one.keys, "unsent", "one")).entry
        assert (entry.is_mine, entry.is_owner_alive, entry.address) == (False, True, "dead:1")
        change(url, "UPDATE owner SET alive_until_microseconds = 0 WHERE address = 'dead:1'")
        claims = await asyncio.gather(
            *(claimed(server.keys, f"k{n}", name) for n in range(81) for server, name in ((one, "one"), (two, "two")))
        )
        assert [claims[2 * n].won + claims[2 * n + 1].won for n in range(81)] == [1] * 81
        redraws = await asyncio.gather(claimed(one.keys, "unsent", "one"), claimed(two.keys, "unsent", "two"))
        (redraw,) = [claim.entry for claim in redraws if claim.won]
        assert (redraw.state, redraw.seed, redraw.request_id) == (COMMITTED, unsent.seed, unsent.request_id)
        gone = await claimed(two.keys, "sent", "two")
        assert (gone.won, gone.entry.state, gone.entry.is_owner_alive) == (False, DELIVERED, False)
        lost = await asyncio.gather(*(dead.keys.commit(record(), e) for e in running), return_exceptions=True)
        assert [type(outcome) for outcome in lost] == [LostOwnership] * 81
        assert len(await one.listed()) == 2


async def test_a_closed_servers_keys_are_free_at_once(postgres: Postgres) -> None:
    """A server that closes its keys says so: nobody waits until it counts as dead."""
    url = postgres.database()
    async with Server(url) as other:
        async with Server(url) as server:
            await claimed(server.keys)
            assert not (await claimed(other.keys, request_id="r2")).won
            server.keys.close()
        assert (await claimed(other.keys, request_id="r2")).won


async def test_a_server_with_a_name_has_its_keys_freed_by_its_restart(postgres: Postgres) -> None:
    """A later process of the same owner id ends the former one's claims, which can then commit nothing."""
    url = postgres.database()
    async with Server(url, owner="replica-0") as former, Server(url, owner="replica-0") as later:
        entry = (await claimed(former.keys)).entry
        change(url, "DELETE FROM owner")  # as sweeping does after a day
        async with Server(url, owner="replica-0") as latest:
            assert (await claimed(latest.keys, request_id="r2")).won
            for lost in (former, later):
                with pytest.raises(LostOwnership):
                    await lost.keys.commit(record(), entry)
            assert await latest.listed() == []


async def test_a_paused_owner_bills_nothing_that_another_took_over(postgres: Postgres) -> None:
    """A server that is stopped past its time, and goes on after another took its key: one record, the other's."""
    url = postgres.database()
    command = [sys.executable, "-m", "tests.usage.owner", url, "2"]
    with started(command) as paused:
        assert paused.stdin
        assert paused.stdout
        assert paused.stdout.readline() == "True\n"
        async with Server(url) as server:
            refused = await claimed(server.keys, request_id="taker")
            assert (refused.won, refused.entry.address) == (False, "paused:1")
            paused.send_signal(signal.SIGSTOP)
            while not (claim := await claimed(server.keys, request_id="taker")).won:  # noqa: ASYNC110 - it is a fact
                await asyncio.sleep(TICK_SECONDS)
            paused.send_signal(signal.SIGCONT)
            paused.stdin.write("commit\n")
            paused.stdin.flush()
            assert await asyncio.to_thread(paused.stdout.readline) == "lost\n"
            await server.keys.commit(record(request_id="taker"), claim.entry)
            assert [each.request_id for each in await server.listed()] == ["taker"]
        paused.stdin.close()


async def test_a_server_says_that_it_lives(postgres: Postgres) -> None:
    """While a server runs, the time until which it counts as alive moves on by itself."""
    url = postgres.database()
    async with Server(url, owner_seconds=0.3):
        until = "SELECT alive_until_microseconds FROM owner"
        first = rows(url, until)
        while rows(url, until) == first:  # noqa: ASYNC110 - it is a fact, not an event
            await asyncio.sleep(TICK_SECONDS)


async def test_a_claim_that_was_not_answered_leaves_the_key_free(postgres: Postgres) -> None:
    """A claim that failed while the database hung holds nothing when the database is back."""
    async with Server(postgres.database(), timeout_seconds=1.0) as server:
        with hanging(postgres), pytest.raises(LedgerUnavailable):
            await claimed(server.keys)
        await up(server.ledger)
        assert (await claimed(server.keys, request_id="r2")).won


async def test_what_happens_to_keys_in_an_outage_is_written_afterwards(tmp_path: Path) -> None:
    """A key freed and one delivered while the file was locked are so when it no longer is."""
    async with Server(f"sqlite:///{tmp_path}/usage.db") as server:
        freed, sent = (await claimed(server.keys, "freed")).entry, await committed(server.keys, "sent")
        with locked(tmp_path / "usage.db"):
            server.keys.free(freed)
            server.keys.delivered(sent)
        assert (await claimed(server.keys, "freed", "r2")).won
        found = await server.keys.find("web", "sent")
        assert found
        assert found.state is DELIVERED


async def test_pruning_forgets_old_keys(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`usage prune` forgets the keys of before the day, but for those of a running server's running jobs."""
    async with Server(url, key_seconds=1e9) as server:
        await claimed(server.keys, "running")
        await committed(server.keys, "old")
        change(url, "UPDATE job SET create_microseconds = 1000000")
        await committed(server.keys, "new")
        assert commands.prune(url, "2001-01-01") == 0
        assert capsys.readouterr().out == "pruned 0 records and 1 keys of before 2001-01-01\n"
        there = [key for key in ("running", "old", "new") if await server.keys.find("web", key)]
        assert there == ["running", "new"]
