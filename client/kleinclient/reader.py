"""Messages of a stream in, typed events out, and at the end the checked image. No I/O: both clients read with it."""

import hashlib

from klein.v1 import image_pb2 as pb

from kleinclient.errors import BrokenStream
from kleinclient.events import READERS, Accepted, Event, Image, Preview, Progress, Size, Started, timings
from kleinclient.names import word
from kleinclient.usage import usage


class Reader:
    """Reads one request's stream; after `restart` a second stream of the same request.

    `accepted` and `request_id` are None and "" until the server has said them.
    """

    def __init__(self) -> None:
        self.accepted: Accepted | None = None
        self.request_id = ""
        self._begin()
        self.restart()

    def restart(self) -> None:
        """Forget what was half read: the request was sent again and its image comes from the beginning."""
        self._header: pb.ImageHeader | None = None
        self._data = bytearray()
        self._completed: pb.Completed | None = None

    def read(self, message: pb.ImageEvent) -> Event | None:
        """The event in `message`; None for a part of the image and for events that this client does not know.

        Raises: BrokenStream.
        """
        self.request_id = message.request_id or self.request_id
        match message.WhichOneof("event"):
            case "image_header":
                self._header = message.image_header
            case "image_chunk":
                self._append(message.image_chunk)
            case "completed":
                self._completed = message.completed
            case str(name) if name in READERS:
                return self._once(READERS[name](getattr(message, name)))
        return None

    def image(self) -> Image:
        """The image, after the stream ended well. Raises: BrokenStream, if it is not whole and true."""
        if self.accepted is None or self._header is None or self._completed is None:
            raise self._broken("the stream ended without an image")
        header, data = self._header, bytes(self._data)
        digest = hashlib.sha256(data)
        if len(data) != header.size_bytes:
            raise self._broken(f"the image has {len(data)} bytes of {header.size_bytes}")
        if digest.digest() != header.sha256:
            raise self._broken("the image's sha256 is not the one that the server gave")
        return Image(
            word(pb.ImageFormat, header.format),
            header.mime_type,
            Size(header.width, header.height),
            word(pb.AlphaMethod, header.alpha_method),
            self.accepted.seed,
            self.accepted.model,
            usage(self._completed.usage),
            timings(self._completed.timings),
            self._completed.max_step_requests,
            self._completed.previews_skipped,
            digest.hexdigest(),
            self.request_id,
            self.accepted.is_replay,
            data,
        )

    def _append(self, chunk: pb.ImageChunk) -> None:
        if self._header is None:
            raise self._broken("a part of the image came before its header")
        if chunk.offset != len(self._data):
            raise self._broken(f"a part of the image came for offset {chunk.offset} where {len(self._data)} was due")
        if len(self._data) + len(chunk.data) > self._header.size_bytes:
            raise self._broken(f"the image has more than its {self._header.size_bytes} bytes")
        self._data += chunk.data

    def _begin(self) -> None:
        """Nothing of the present picture has been told yet."""
        self._has_started = False
        self._progress = 0
        self._preview = 0

    def _once(self, event: Event) -> Event | None:
        """What was told before the request was sent again is not told twice, unless another picture has begun."""
        match event:
            case Accepted():
                before, self.accepted = self.accepted, event
                if before is not None and before.is_same_picture(event):
                    return None
                self._begin()
            case Started():
                is_first, self._has_started = not self._has_started, True
                return event if is_first else None
            case Progress(step=step):
                is_new, self._progress = step >= self._progress, max(step, self._progress)
                return event if is_new else None
            case Preview(step=step):
                is_new, self._preview = step > self._preview, max(step, self._preview)
                return event if is_new else None
        return event

    def _broken(self, message: str) -> BrokenStream:
        return BrokenStream(message, status="DATA_LOSS", reason="BROKEN_STREAM", request_id=self.request_id)
