"""Servers of one certificate that names none of their addresses, with callers and a credential of their own."""

from pathlib import Path

from benchmarks.cluster import secured
from tests.e2e.forked import Forked
from tests.usage.postgres import Postgres


def test_a_key_finds_its_owner(postgres: Postgres, tmp_path: Path) -> None:
    """A repeat at the other server is replayed by the owner over TLS; the replicas' token is no caller's."""
    assert secured.main(postgres.database(), tmp_path, Forked) == ""
