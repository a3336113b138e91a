"""`python -m benchmarks.cluster`: every trial, printed as it ends. `… demo`: a demonstration of one rolling restart."""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster import demo, fronts, secured, trials
from tests.replicas.cluster import Server, envoy, servers
from tests.usage.postgres import Postgres

SETTINGS = {"DRAIN_NOTICE_SECONDS": "3", "OWNER_SECONDS": "5"}


def main() -> int:
    """Exit code 1: a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster")
    parser.add_argument("what", nargs="?", choices=["all", "demo"], default="all")
    parser.add_argument("--requests", type=int, default=200, help="of each rolling restart, at least")
    parser.add_argument("--rolls", type=int, default=3, help="by Envoy alone")
    parser.add_argument("--cancels", type=int, default=40)
    parser.add_argument("--keyed", type=int, default=40, help="callers when a server is killed")
    arguments = parser.parse_args()
    os.environ["no_proxy"] = "127.0.0.1,localhost"
    with database() as ledger, tempfile.TemporaryDirectory(prefix="klein-cluster-") as folder:
        if arguments.what == "demo":
            return demo.main(ledger, Path(folder), SETTINGS)
        wrong = secured.main(ledger, Path(folder))
        say(f"with TLS, callers and a credential of their own: {wrong or 'keys find their owner'}")
        with servers(ledger, Path(folder), **SETTINGS) as pair:
            return report(ledger, pair, arguments) or int(bool(wrong))


@contextmanager
def database() -> Iterator[str]:
    """The URL of a database on a PostgreSQL of its own."""
    postgres = Postgres()
    try:
        yield postgres.database()
    finally:
        postgres.close()


def report(ledger: str, pair: tuple[Server, ...], asked: argparse.Namespace) -> int:
    targets, is_good = [server.target for server in pair], True
    with envoy(*pair) as front:
        own, passed = trials.forwarded(pair, 20)
        say(f"a replay, ms, median (quartiles): at the owner {own}, passed on {passed}")
        arrived = trials.cancel(front.target, pair, asked.cancels)
        say(f"cancels through Envoy: {arrived} of {asked.cancels} arrived")
        is_good &= arrived == asked.cancels
        for name, repeated, way in (
            ("Envoy, callers that never try again", asked.rolls, fronts.bare(front.target)),
            ("Envoy, kleinclient", 1, fronts.library(front.target)),
            ("round_robin, backoff 1 s", 1, fronts.round_robin(targets, backoff_seconds=1.0)),
            ("round_robin, gRPC's own backoff", 1, fronts.round_robin(targets, backoff_seconds=None)),
            ("one server's address, kleinclient", 1, fronts.library(targets[0])),
        ):
            with way as draw:
                for _ in range(repeated):
                    result = trials.roll(draw, pair, front, asked.requests)
                    say(f"rolling restart, {name}: {result}")
                    is_good &= not result.failures or not name.startswith("Envoy")
        result, bills = trials.kill(front.target, pair[1], ledger, asked.keyed)
        say(f"kill -9 under keyed load, Envoy, kleinclient: {result}; bills a request: {dict(bills)}")
        is_good &= not result.failures and set(bills) == {1}
    return 0 if is_good else 1


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
