"""What the scheduler asks of a model. The real engine, and a scripted one with a fake clock, answer it.

The scheduler imports nothing of the engine but this: no tensors, no memory errors of a library.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from kleinserve.core import AlphaMethod, Demand, ModelFacts, Pixels, Preview, Request


class Render(Protocol):
    """One request's picture in the making; the engine's own object, in one thread's hands at a time.

    `picture`: what was decoded, for `resolve`; None before. `prompt_tokens`: before the cut at the model's limit.
    """

    request: Request
    steps_done: int
    picture: Any
    prompt_hit: bool | None
    reference_hits: list[bool]

    @property
    def total_steps(self) -> int: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def is_truncated(self) -> bool: ...
    @property
    def is_begun(self) -> bool:
        """Whether its prompt and references are encoded."""
        ...

    @property
    def is_denoised(self) -> bool:
        """Whether the present pass has no steps left."""
        ...

    @property
    def needs_second(self) -> bool:
        """Whether another pass follows the present one."""
        ...


class Engine(Protocol):
    """Two threads may use it at once: one for `step` and `previews`; one for the pieces and the rest.

    Raises, everywhere: AcceleratorOutOfMemory, then nothing of that call has happened; AcceleratorLost, then nothing
    more can be asked of it. What else is raised is a defect, blamed on the request alone that it was raised for.
    The renders that it takes are those it gave.
    """

    @property
    def facts(self) -> ModelFacts: ...
    @property
    def identity(self) -> str:
        """What its speed depends on: under this name a calibration is kept."""
        ...

    @property
    def work_per_token(self) -> float:
        """GFLOP that a token adds to a step, its attention left out."""
        ...

    def warm(self) -> None:
        """Compile and touch what the first request would otherwise wait for, on the thread that calls."""
        ...

    def render(self, request: Request) -> Render:
        """A picture not yet begun: the prompt tokenised. From any thread."""
        ...

    def demand(self, render: Any) -> Demand: ...

    def text(self, renders: Sequence[Any]) -> Iterator[None]:
        """Encode their prompts, or find them in the cache: a piece each time it is advanced."""
        ...

    def begin(self, render: Any) -> Iterator[None]:
        """Encode its references, a piece at a time; at the end its first step can be taken."""
        ...

    def step(self, renders: Sequence[Any]) -> None:
        """Advance each by one step, in one pass."""
        ...

    def previews(self, renders: Sequence[Any]) -> list[Callable[[], Pixels | Preview]]:
        """The last step's estimates: pictures of an eighth of the size, or where LATENT was asked the latent.

        Each is ready when its call returns, which waits for the device: call it from a thread that may wait.
        """
        ...

    def decode(self, renders: Sequence[Any], *, tiled: bool = False) -> Iterator[None]:
        """Decode pictures of one size, a piece at a time; at the end each `picture` is set and its memory is free."""
        ...

    def begin_second(self, render: Any) -> Iterator[None]:
        """Begin the second pass from the first one's picture, a piece at a time."""
        ...

    def resolve(self, render: Any) -> tuple[Pixels, AlphaMethod]:
        """The final pixels of a decoded picture. From any thread. Raises: AlphaUnavailable."""
        ...

    def release(self) -> None:
        """Give unused memory back, so that a smaller attempt finds room."""
        ...

    def memory_bytes(self) -> dict[str, int]:
        """Accelerator memory: used, peak and total."""
        ...
