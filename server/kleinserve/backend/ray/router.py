"""Which replica has a request: Ray asks for each call. Holds nothing itself: see board.py."""

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from kleinserve.backend.ray import board  # the module: Ray pickles this class by value, and BOARD would be a copy
from kleinserve.core import Request


class Router(RequestRouter):
    """A new request goes to whoever has the least to do; what is said of a running one to the replica that has it."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Replicas in order, those that are tried together in one list."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # else Ray asks again at once, and for ever
        about = pending_request.args[0] if pending_request.args else None
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if isinstance(about, Request):
            return [[replicas[name]] for name in board.BOARD.choose(about, replicas)]
        if isinstance(about, str):
            holder = board.BOARD.holder(about)
            return [[replicas[holder]]] if holder in replicas else []
        return [candidate_replicas]
