"""The backend on Ray: fronts with our servers and no model, replicas with a Local each. Owns ray."""

import os
import secrets

ENVIRONMENT = {  # of fronts and replicas
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 1024 * 1024),  # else 4 MiB, and edits fail
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "1e9",  # else a call after a pause first asks how many are there
}


def settle(address: str) -> None:
    """Set what Ray reads when it is loaded: to be called before it is. A cluster of our own has a secret of its own."""
    if not address:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"  # its ports are open to whoever reaches this machine
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
