"""Which replica has a request: Ray asks for each call. Holds nothing itself: see board.py."""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from kleinserve.backend.ray.board import BOARD
from kleinserve.core import Request


class Router(RequestRouter):
    """A new request goes to whoever has the least to do; what is said of a running one to the replica that has it."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas in order, those that are tried together in one list."""
        about = pending_request.args[0] if pending_request is not None and pending_request.args else None
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if isinstance(about, Request):
            return [[replicas[name]] for name in BOARD.choose(about, replicas)]
        if isinstance(about, str):
            holder = BOARD.holder(about)
            return [[replicas[holder]]] if holder in replicas else []
        return [candidate_replicas]
