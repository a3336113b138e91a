"""Two servers with TLS, a callers file and a credential of their own: whether keys find their owner all the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import trustme
from kleinclient import Client, KleinError

from benchmarks.cluster.fronts import SMALL
from tests.e2e.forked import Start, spawned
from tests.replicas.cluster import servers

NAME = "klein.internal"


def main(ledger: str, folder: Path, start: Start = spawned) -> str:
    """What went wrong; "": nothing."""
    token, entries = made_token("web")
    replica, replica_entries = made_token("unused")
    listed = re.search(r"token_sha256 = .*", replica_entries)
    assert listed is not None
    (folder / "token").write_text(replica)
    (folder / "callers.toml").write_text(f'{entries}\n[replicas]\n{listed[0]}\ntoken_file = "token"\n')
    settings = {"CALLERS": str(folder / "callers.toml")} | certificates(folder)
    trusting = {"tls_ca": (folder / "ca.pem").read_bytes(), "channel_options": {"grpc.ssl_target_name_override": NAME}}
    with servers(ledger, folder, start=start, **settings) as (first, second):
        with (
            Client(first.target, token=token, **trusting) as here,
            Client(second.target, token=token, **trusting) as there,
        ):
            drawn = here.generate("a red circle", idempotency_key="k", seed=1, **SMALL).result()
            again = there.generate("a red circle", idempotency_key="k", seed=1, **SMALL).result()
        replays = first.counted("klein_replays_total"), second.counted("klein_replays_total")
        if drawn.data != again.data or replays != (1, 0):
            return f"the repeat at the other server is not the owner's: replays {replays}"
        with Client(second.target, token=replica, **trusting) as stranger:
            try:
                stranger.capabilities()
            except KleinError as error:
                return "" if error.status == "UNAUTHENTICATED" else str(error)
    return "a replica was taken for a caller"


def certificates(folder: Path) -> dict[str, str]:
    """The settings of one certificate for all servers, without their addresses, and of its authority."""
    authority = trustme.CA()
    issued = authority.issue_cert(NAME)
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "chain.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    names = {"TLS_CERTIFICATE": "chain.pem", "TLS_KEY": "key.pem", "REPLICAS_CA": "ca.pem"}
    return {name: str(folder / file) for name, file in names.items()}


def made_token(name: str) -> tuple[str, str]:
    """A token, and its lines of a callers file."""
    command = [sys.executable, "-m", "kleinserve", "token", name]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return told.stdout.strip(), told.stderr
