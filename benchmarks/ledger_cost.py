"""What the ledger costs a delivery: the same request in turn to a server with SQLite and to one with --ledger none.

    python -m benchmarks.ledger_cost [--pairs 30]

Exit code 1 where the median of the pairs' differences is more than 20 ms.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from kleinclient import Client

MILLISECONDS_MAX = 20.0


@contextmanager
def served(ledger: str) -> Iterator[str]:
    """A warm server's HOST:PORT."""
    command = [sys.executable, "-m", "kleinserve", "serve", "--port", "0", "--metrics-port", "0", "--ledger", ledger]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"serving on (\S+),", process.stdout.readline())
            assert found, "the server did not start"
            yield found[1]
        finally:
            process.terminate()


def milliseconds(client: Client, seed: int) -> float:
    begin = time.perf_counter()
    client.generate("a red circle", size=(64, 64), steps=1, seed=seed, previews=False, idempotency_key="").result()
    return (time.perf_counter() - begin) * 1000


def measure(pairs: int) -> list[tuple[float, float]]:
    """Milliseconds with the ledger and without it, pair by pair; who comes first takes turns."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        targets = [stack.enter_context(served(ledger)) for ledger in (f"sqlite:///{folder}/usage.db", "none")]
        clients = [stack.enter_context(Client(target)) for target in targets]
        for client in clients:  # connects, and has the prompt in the cache
            milliseconds(client, 0)
        found = []
        for seed in range(pairs):
            order = (0, 1) if seed % 2 else (1, 0)
            took = {which: milliseconds(clients[which], seed) for which in order}
            found.append((took[0], took[1]))
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    pairs = measure(parser.parse_args().pairs)
    with_ledger, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    cost = statistics.median(one - other for one, other in pairs)
    low, _, high = statistics.quantiles([one - other for one, other in pairs], n=4)
    print(f"{len(pairs)} pairs of 64×64, one step, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"with SQLite {with_ledger:.1f} ms, without {without:.1f} ms (medians)")
    print(f"the ledger costs {cost:.1f} ms (median of the differences; quartiles {low:.1f} and {high:.1f})")
    return 1 if cost > MILLISECONDS_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
