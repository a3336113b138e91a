"""An engine that only takes time, on a clock that only it moves. Every stage takes what a cost line says.

What it is asked is kept in `calls`; what fails is said beforehand in `failures`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kleinserve.core import MEGAPIXEL, AlphaMethod, Demand, ModelFacts, Pixels, Preview, Request, Size, Variant
from kleinserve.scheduler.cost import Line

FACTS = ModelFacts(
    name="scripted",
    variant=Variant.DISTILLED,
    default_size=Size(1024, 1024),
    default_steps=4,
    default_guidance_scale=1.0,
    prompt_tokens_max=512,
    latent_channels=128,
    has_native_alpha=False,
    device="cuda",
    dtype="bfloat16",
)
PICTURE = Pixels(Size(16, 16), 3, bytes(768))


@dataclass
class Clock:
    """Seconds that pass when someone says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class ScriptedRender:
    """A request's progress."""

    request: Request
    passes: int = 1
    pass_steps: int = 0
    steps_done: int = 0
    picture: Any = None
    prompt_hit: bool | None = None
    reference_hits: list[bool] = field(default_factory=list)
    is_begun: bool = False
    has_second: bool = False

    @property
    def total_steps(self) -> int:
        return self.request.options.steps * self.passes

    @property
    def prompt_tokens(self) -> int:
        return 1

    @property
    def is_truncated(self) -> bool:
        return False

    @property
    def is_denoised(self) -> bool:
        return self.pass_steps >= self.request.options.steps

    @property
    def needs_second(self) -> bool:
        return self.passes == 2 and not self.has_second


@dataclass
class ScriptedEngine:
    """What each stage takes: `text` by prompts, `references` and `decode` by megapixels, `step` by `work` of tokens.

    `decode_pieces`: of one decode; the rest is one piece each. `slower`: times what the lines say. `failures`: by the
    name of a call, functions that are asked first, with the renders, and may raise. `passing` is called before the
    clock moves on, with the time to which it does.
    """

    clock: Clock
    step_line: Line
    text_line: Line = field(default_factory=Line)
    references_line: Line = field(default_factory=Line)
    decode_line: Line = field(default_factory=Line)
    decode_pieces: int = 1
    text_tokens: int = 512
    work: Callable[[int], float] = float
    passes: int = 1
    facts: ModelFacts = FACTS
    identity: str = "scripted"
    work_per_token: float = 1.0
    slower: Callable[[], float] = lambda: 1.0
    failures: dict[str, Callable[[Sequence[ScriptedRender]], object]] = field(default_factory=dict)
    calls: list[tuple[str, tuple[ScriptedRender, ...]]] = field(default_factory=list)
    passing: Callable[[float], object] = lambda until: None
    keeps_calls: bool = True
    released: int = 0

    def warm(self) -> None:
        self.calls.append(("warm", ()))

    def render(self, request: Request) -> ScriptedRender:
        return ScriptedRender(request, self.passes)

    def demand(self, render: ScriptedRender) -> Demand:
        request = render.request
        references = sum(size.pixels for size in request.reference_sizes)
        tokens = self.text_tokens + request.size.tokens + references // 256
        left = 1 if render.has_second else render.passes
        return Demand(self.work(tokens), tokens, request.size.pixels / MEGAPIXEL, references / MEGAPIXEL, left)

    def text(self, renders: Sequence[ScriptedRender]) -> Iterator[None]:
        self._ask("text", renders)
        self._take(self.text_line.seconds(len(renders)))
        for render in renders:
            render.prompt_hit = False
        yield

    def begin(self, render: ScriptedRender) -> Iterator[None]:
        self._ask("begin", [render])
        megapixels = self.demand(render).reference_megapixels
        if megapixels:
            self._take(self.references_line.seconds(megapixels))
        render.reference_hits = [False] * len(render.request.references)
        render.is_begun = True
        if megapixels:
            yield

    def step(self, renders: Sequence[ScriptedRender]) -> None:
        self._ask("step", renders)
        assert all(render.is_begun and not render.is_denoised for render in renders)
        self._take(self.step_line.seconds(sum(self.demand(render).work for render in renders)))
        for render in renders:
            render.steps_done += 1
            render.pass_steps += 1

    def previews(self, renders: Sequence[ScriptedRender]) -> list[Callable[[], Pixels | Preview]]:
        self._ask("previews", renders)
        return [lambda: PICTURE for _ in renders]

    def decode(self, renders: Sequence[ScriptedRender], *, tiled: bool = False) -> Iterator[None]:
        self._ask("tiled" if tiled else "decode", renders)
        assert all(render.is_denoised for render in renders)
        seconds = self.decode_line.seconds(sum(render.request.size.pixels for render in renders) / MEGAPIXEL)
        for _ in range(self.decode_pieces):
            self._take(seconds / self.decode_pieces)
            yield
        for render in renders:
            render.picture = PICTURE

    def begin_second(self, render: ScriptedRender) -> Iterator[None]:
        self._ask("begin_second", [render])
        self._take(self.references_line.seconds(render.request.size.pixels / MEGAPIXEL))
        render.has_second, render.pass_steps = True, 0
        yield

    def resolve(self, render: ScriptedRender) -> tuple[Pixels, AlphaMethod]:
        return PICTURE, AlphaMethod.OPAQUE

    def release(self) -> None:
        self.released += 1

    def memory_bytes(self) -> dict[str, int]:
        return {"used": 0, "peak": 0, "total": 0}

    def _ask(self, name: str, renders: Sequence[ScriptedRender]) -> None:
        if self.keeps_calls:
            self.calls.append((name, tuple(renders)))
        if name in self.failures:
            self.failures[name](renders)

    def _take(self, seconds: float) -> None:
        until = self.clock.now + seconds * self.slower()
        self.passing(until)
        self.clock.now = until
