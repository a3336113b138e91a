"""The cluster's trials with many requests, and what they measure: `make test-ray-full`. Exit code 1: one failed."""

import asyncio
import os
import subprocess
import sys
from contextlib import closing

from tests.e2e.conftest import served
from tests.e2e.forked import spawned
from tests.ray import trials
from tests.ray.cluster import Cluster, cluster
from tests.usage.postgres import Postgres

MIB = 1024 * 1024
PREVIEW_LATER_MS_MAX, WHOLE_LATER_MS_MAX = 25, 60  # at the median, where nothing else computes
failed: list[str] = []


def say(what: str, *, is_good: bool) -> None:
    print(f"{'ok  ' if is_good else 'FAIL'} {what}", flush=True)
    if not is_good:
        failed.append(what)


async def run(made: Cluster, ledger: str, pairs: int = 40) -> None:
    """`ledger`: an empty one, for a server beside the cluster."""
    load = os.getloadavg()[0]
    settings = {"KLEINSERVE_THREADS": "1", "KLEINSERVE_LEDGER": ledger}
    with served(log=subprocess.DEVNULL, start=spawned, **settings) as local:
        preview, whole = await trials.latency(local.target, made.targets()[0], pairs)
    say(f"first preview later than local: {preview}", is_good=preview.median <= PREVIEW_LATER_MS_MAX)
    told = f"{whole} (64 × 64, load average {load:.1f} before)"
    say(f"whole request later than local: {told}", is_good=whole.median <= WHOLE_LATER_MS_MAX)

    ended = await trials.cancels(made.targets(), 200)
    seconds = await trials.until_idle(made.actors("Replica"))
    say(f"{ended} of 200 cancels arrived, replicas idle {seconds:.1f} s later", is_good=ended == 200)

    found = await trials.stalled(made, steps=3200)
    told = f"{found.unread / MIB:.0f} MiB unread: the front grew by {found.front / MIB:.1f} MiB"
    say(f"{told}, the replicas by {found.replicas / MIB:.1f} MiB", is_good=found.front + found.replicas < 64 * MIB)

    tally, again = await trials.replica_killed(made, 150)
    is_good = not tally.failed and len(tally.statuses) == 150 and again > 0 and not tally.repeated
    told = f"{tally.statuses.count('OK')} of 150 OK, {again} drawn again, told twice {tally.repeated}"
    told = f"{told}, images of one seed differ by {tally.difference} of 255 at most"
    say(f"a replica killed: {told}", is_good=is_good and tally.difference <= trials.DIFFERENCE_MAX)
    made.until_gone("Replica", set(), 2)

    tally, seconds = await trials.rolled(made, 200)
    told = f"{tally.statuses.count('OK')} of {len(tally.statuses)} OK in {seconds:.0f} s"
    say(f"rolling update of both replicas: {told}", is_good=not tally.failed and len(tally.statuses) >= 200)

    broken, other, images = await trials.front_killed(made, callers=8)
    told = f"{len(broken.failed)} of its {len(broken.statuses)} streams broke, {len(other.failed)} of the other's"
    say(f"a front killed: {told}; kleinclient had {images} of 8 images", is_good=not other.failed and images == 8)

    say(f"a second replica {await trials.scaled(made):.0f} s after the load began", is_good=True)

    tally = await trials.head_lost(made, 15.0)
    told = f"{tally.statuses.count('OK')} of {len(tally.statuses)} OK"
    say(f"the head's GCS away for 15 s: {told}", is_good=not tally.failed)


if __name__ == "__main__":
    with closing(Postgres()) as postgres, cluster(postgres.database()) as nodes:
        nodes.deploy()
        nodes.wait()
        asyncio.run(run(nodes, postgres.database()))
    sys.exit(1 if failed else 0)
