"""One image request over as many attempts as it takes, without the I/O: what both streams share."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from klein.v1 import image_pb2 as pb

from kleinclient import answer
from kleinclient.errors import Cancelled, KleinError
from kleinclient.events import Accepted, Event, Image, Retrying
from kleinclient.reader import Reader
from kleinclient.request import Ask
from kleinclient.retry import Attempts, Retry


class Exchange:
    """What one stream has said so far, and how it ended. The streams drive it; nothing here waits.

    `accepted` and `request_id` are None and "" until the server has said them.
    """

    def __init__(self, ask: Ask, retry: Retry, target: str):
        self._target = target
        self._reader = Reader()
        self._attempts = Attempts(retry, timeout=ask.timeout, has_key=ask.has_key)
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
        """The event in `message`, if it is one. Raises: BrokenStream."""
        self._attempts.heard = True
        with self._last_word():
            return self._reader.read(message)

    def finish(self) -> Image:
        """The image, when the stream has ended with OK. Raises: BrokenStream."""
        with self._last_word():
            self._image = self._reader.image()
        return self._image

    def fail(self, failure: grpc.RpcError) -> Retrying:
        """When to send the request again, the attempt having failed. Raises: the typed error, if it is final."""
        error = answer.error(failure, self._target)
        error.request_id = error.request_id or self.request_id
        with self._last_word():
            retrying = self._attempts.failed(error)
        self._reader.restart()
        return retrying

    def leave(self) -> None:
        """The reader left; whatever was not complete is cancelled."""
        if not self.has_ended:
            message = "the request was cancelled"
            self._error = Cancelled(message, status="CANCELLED", request_id=self.request_id)

    @contextmanager
    def _last_word(self) -> Iterator[None]:
        """An error in here ends the exchange: whoever asks for the image later gets the same error."""
        try:
            yield
        except KleinError as error:
            self._error = error
            raise
