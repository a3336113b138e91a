"""The backend on Ray: fronts with our servers and no model, replicas with a Local each. Owns ray."""

import os
import secrets


def settle(address: str) -> None:
    """Set what Ray reads when it is loaded: to be called before it is. A cluster of our own has a secret of its own."""
    if not address:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_AUTH_MODE"] = "token"  # its ports are open to whoever reaches this machine
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
