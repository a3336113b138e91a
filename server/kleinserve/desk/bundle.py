"""The images of one message: of gRPC's always one, of OpenAI's API up to ten. On the event loop."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kleinserve.core import EncodedImage, Reference
from kleinserve.desk.job import Job

References = tuple[Reference, ...]


@dataclass(eq=False)
class Bundle:
    """So many images that have their references together, and are settled together or not at all.

    `jobs`: those that this bundle settles. `apart`: how many of its images are another's to settle, since their keys
    belong to jobs that were there before: such a job is waited for until it is drawn, on another server until it is
    admitted there. `drawn`: what waits for the others.
    """

    count: int = 1
    jobs: list[Job] = field(default_factory=list)
    apart: int = 0
    drawn: dict[Job, EncodedImage] = field(default_factory=dict)
    _on_drawn: Callable[["Bundle"], None] = lambda bundle: None
    _references: References | None = None
    _read: int = 0

    async def references(self, decode: Callable[[], Awaitable[References]]) -> References:
        """They are decoded for the first image that asks, and held until the last one has."""
        decoded = await decode() if self._references is None else self._references
        self._read += 1
        self._references = decoded if self._read + self.apart < self.count else None
        return decoded

    def add(self, job: Job, on_drawn: Callable[["Bundle"], None]) -> None:
        """A job of its own. `on_drawn` is called once all are drawn."""
        self.jobs.append(job)
        self._on_drawn = on_drawn

    def draw(self, job: Job, image: EncodedImage) -> None:
        self.drawn[job] = image
        self._check()

    def leave_out(self) -> None:
        """One of its images is another's to settle, and not to be waited for any longer."""
        self.apart += 1
        self._check()

    def _check(self) -> None:
        is_whole = len(self.drawn) + self.apart == self.count
        if is_whole and self.drawn and all(job.error is None for job in self.drawn):
            self._on_drawn(self)
