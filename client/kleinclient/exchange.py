"""One image request over as many attempts as it takes, without the I/O: what both streams share."""

import grpc
from klein.v1 import image_pb2 as pb

from kleinclient import answer
from kleinclient.connection import Connection
from kleinclient.errors import BrokenStream, Cancelled, InvalidField, KleinError
from kleinclient.events import Accepted, Event, Image, Retrying
from kleinclient.reader import Reader
from kleinclient.request import Ask
from kleinclient.retry import Attempts

KEY_FIELD = "options.idempotency_key"


class Exchange:
    """What one stream has said so far, and how it ended. The streams drive it; nothing here waits.

    `ask`: what the next attempt sends. `accepted` and `request_id` are None and "" until the server has said them.
    """

    def __init__(self, ask: Ask, connection: Connection):
        self._connection = connection
        self.ask = ask if connection.contact.takes_keys or not ask.may_drop_key else ask.without_key()
        self._reader = Reader()
        self._attempts = Attempts(
            connection.retry, connection.contact, timeout=ask.timeout, repeatable=bool(self.ask.key)
        )
        self._image: Image | None = None
        self._error: KleinError | None = None

    @property
    def accepted(self) -> Accepted | None:
        return self._reader.accepted

    @property
    def request_id(self) -> str:
        return self._reader.request_id

    @property
    def has_ended(self) -> bool:
        return self._image is not None or self._error is not None

    def image(self) -> Image:
        """The image of a stream that ended. Raises: what it ended with instead."""
        if self._error is not None:
            raise self._error
        assert self._image is not None, "the stream has not ended"
        return self._image

    def seconds_left(self) -> float | None:
        return self._attempts.seconds_left()

    def receive(self, message: pb.ImageEvent) -> Event | None:
        """The event in `message`, if it is one that was not told before. Raises: BrokenStream; `fail` judges it."""
        self._attempts.heard = True
        event = self._reader.read(message)
        if event is not None:
            self._attempts.progressed()
        return event

    def finish(self) -> Image:
        """The image, when the stream has ended with OK. Raises: BrokenStream; `fail` judges it."""
        self._image = self._reader.image()
        return self._image

    def fail(self, failure: grpc.RpcError | BrokenStream) -> Retrying | None:
        """When to send the request again, None: at once. Raises: the typed error, if it is final."""
        if self.has_ended:  # the reader left, and this is what became of the call
            self.image()
        error = failure if isinstance(failure, BrokenStream) else answer.error(failure, self._connection.target)
        error.request_id = error.request_id or self.request_id
        if self._must_drop_key(error):
            self._connection.contact.takes_keys = self._attempts.repeatable = False
            self.ask = self.ask.without_key()
            return None
        try:
            retrying = self._attempts.failed(error)
        except KleinError as last:
            self._error = last
            raise
        self._reader.restart()
        return retrying

    def leave(self) -> None:
        """The reader left; whatever was not complete is cancelled."""
        if not self.has_ended:
            message = "the request was cancelled"
            self._error = Cancelled(message, status="CANCELLED", request_id=self.request_id)

    def _must_drop_key(self, error: KleinError) -> bool:
        """Whether this server takes no keys, and the caller has not asked for one."""
        is_named = isinstance(error, InvalidField) and any(bad.field == KEY_FIELD for bad in error.violations)
        return self.ask.may_drop_key and is_named
