"""The backend over a scripted engine, with its real threads: what each request's sink is told, and its last word."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from kleinserve.backend.backend import Load, State
from kleinserve.backend.local import Local
from kleinserve.config import load
from kleinserve.core import (
    BackendEvent,
    Failed,
    Finished,
    Preview,
    PreviewOptions,
    Priority,
    Progress,
    Queued,
    Size,
    Started,
)
from kleinserve.errors import (
    AcceleratorLost,
    Cancelled,
    DeadlinePassed,
    Draining,
    Internal,
    KleinError,
)
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import Line

from tests.desk.requests import REQUEST
from tests.scheduler.scripted import Clock, ScriptedEngine, ScriptedRender


@dataclass
class Sink:
    """What one request was told, in order."""

    events: list[BackendEvent] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, event: BackendEvent) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self.ended.set()

    async def last(self) -> Finished | Failed:
        async with asyncio.timeout(30):
            await self.ended.wait()
        last = self.events[-1]
        assert isinstance(last, Finished | Failed)
        return last

    async def error(self) -> KleinError:
        last = await self.last()
        assert isinstance(last, Failed)
        return last.error

    @property
    def kinds(self) -> list[type]:
        return [type(event) for event in self.events if not isinstance(event, Queued)]


class Gate:
    """Holds the engine in one of its calls until it is opened."""

    def __init__(self, engine: ScriptedEngine, name: str):
        self.entered, self.open = threading.Event(), threading.Event()
        engine.failures[name] = self._wait

    def _wait(self, renders: Sequence[ScriptedRender]) -> None:
        self.entered.set()
        assert self.open.wait(30.0)


@dataclass
class Opened:
    """A started backend and what it said of its state."""

    engine: ScriptedEngine
    metrics: Metrics
    backend: Local
    states: list[State]

    async def submit(self, request_id: str = "a", left: float | None = None, **options: Any) -> Sink:
        sink = Sink()
        asked = replace(REQUEST, request_id=request_id, options=replace(REQUEST.options, **options))
        await self.backend.submit(asked, left, sink)
        return sink


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture
async def opened(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Opened]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine, metrics, states = ScriptedEngine(Clock(), Line(0.001, 0.0)), Metrics(), []
    engine.facts = replace(engine.facts, default_size=Size(64, 64))
    backend = Local(engine, load({"deadline_admission": False}), metrics)
    await backend.start(states.append)
    yield Opened(engine, metrics, backend, states)
    engine.failures.clear()
    await backend.drain(0.0)


async def test_a_request_is_told_its_way_in_order(opened: Opened) -> None:
    """Started once, a progress and a preview for each step, the image last, with what was spent."""
    gate = Gate(opened.engine, "decode")
    sink = await opened.submit()
    await until(lambda: len([event for event in sink.events if isinstance(event, Preview)]) >= 1)
    gate.open.set()
    last = await sink.last()
    assert sink.kinds[0] is Started
    assert sink.kinds[-1] is Finished
    assert [event.step for event in sink.events if isinstance(event, Progress)] == [1, 2, 3, 4]
    previews = [event for event in sink.events if isinstance(event, Preview)]
    assert sum(1 + preview.skipped for preview in previews) == previews[-1].step == 4
    assert (last.spent.steps_run, last.spent.max_step_requests) == (4, 1)
    assert last.spent.timings.encode > 0
    assert opened.states == [State.READY]
    assert opened.backend.load() == Load(0.0, opened.backend.load().wait_seconds, 0, 0)


async def test_admitted_says_what_was_predicted(opened: Opened) -> None:
    """The prompt's tokens are the engine's; estimates count those before it."""
    gate = Gate(opened.engine, "text")
    first = await opened.backend.submit(REQUEST, None, Sink())
    second = await opened.backend.submit(replace(REQUEST, request_id="b"), None, Sink())
    assert (first.prompt_tokens, first.is_truncated) == (1, False)
    assert second.estimated_wait >= first.estimated_wait
    assert opened.backend.load().waiting == 2
    gate.open.set()


@pytest.mark.parametrize("at", ["text", "step", "decode"])
async def test_a_cancelled_request_fails_at_the_next_boundary(opened: Opened, at: str) -> None:
    """Wherever it is; a second cancel, and one for what has ended, change nothing; the next request is served."""
    gate = Gate(opened.engine, at)
    sink = await opened.submit()
    await until(gate.entered.is_set)
    opened.backend.cancel("a")
    opened.backend.cancel("a")
    gate.open.set()
    assert isinstance(await sink.error(), Cancelled)
    opened.backend.cancel("a")
    opened.backend.cancel("never heard of")
    assert isinstance(await (await opened.submit("b")).last(), Finished)
    assert sink.kinds.count(Failed) == 1


async def test_a_cancelled_image_is_not_encoded_for_nobody(opened: Opened) -> None:
    """Exactly one last word, though the file becomes ready after the cancel."""
    resolving, going = threading.Event(), threading.Event()
    resolve = opened.engine.resolve

    def slow(render: ScriptedRender) -> Any:
        resolving.set()
        assert going.wait(30.0)
        return resolve(render)

    opened.engine.resolve = slow  # type: ignore[method-assign]
    sink = await opened.submit()
    await until(resolving.is_set)
    opened.backend.cancel("a")
    going.set()
    await sink.last()
    await (await opened.submit("b")).last()
    assert len([event for event in sink.events if isinstance(event, Finished | Failed)]) == 1


async def test_a_deadline_that_passes_between_two_steps_ends_it(opened: Opened) -> None:
    """And a reader that joins later can lift it before it does."""
    gate = Gate(opened.engine, "step")
    late, lifted = await opened.submit("a", 60.0), await opened.submit("b", 60.0)
    await until(gate.entered.is_set)
    for request_id in "ab":
        opened.backend.change(request_id, 0.0, Priority.STANDARD)
    opened.backend.change("b", None, Priority.INTERACTIVE)
    opened.backend.change("never heard of", None, Priority.BATCH)
    gate.open.set()
    assert isinstance(await late.error(), DeadlinePassed)
    assert isinstance(await lifted.last(), Finished)


async def test_a_deadline_that_has_passed_is_refused_and_the_sink_never_called(opened: Opened) -> None:
    """What submit raises leaves nothing behind."""
    sink = Sink()
    with pytest.raises(DeadlinePassed):
        await opened.backend.submit(REQUEST, 0.0, sink)
    await (await opened.submit("b")).last()
    assert (sink.events, opened.backend._works) == ([], {})


@pytest.mark.parametrize(
    ("raised", "error"), [(Cancelled("as it says"), Cancelled), (ValueError("/insides"), Internal)]
)
async def test_a_file_that_cannot_be_made_is_the_request_s_failure(
    opened: Opened, raised: Exception, error: type[KleinError]
) -> None:
    """Ours says nothing of our insides; those beside it get their images."""

    def resolve(render: ScriptedRender) -> Any:
        raise raised

    working, opened.engine.resolve = opened.engine.resolve, resolve  # type: ignore[method-assign]
    failed = await (await opened.submit()).error()
    assert isinstance(failed, error)
    assert "insides" not in str(failed)
    opened.engine.resolve = working  # type: ignore[method-assign]
    assert isinstance(await (await opened.submit("b")).last(), Finished)


async def test_when_the_engine_dies_everybody_is_told(opened: Opened) -> None:
    """Each request fails once with INTERNAL, then the state is DEAD, and nothing more is taken."""
    gate = Gate(opened.engine, "step")

    def die(renders: Sequence[ScriptedRender]) -> None:
        assert gate.open.wait(30.0)
        raise AcceleratorLost("/insides")

    opened.engine.failures["step"] = die
    sinks = [await opened.submit(name) for name in "abc"]
    gate.open.set()
    for sink in sinks:
        error = await sink.error()
        assert isinstance(error, Internal)
        assert "insides" not in str(error)
    await until(lambda: opened.states == [State.READY, State.DEAD])
    with pytest.raises(Draining):
        await opened.submit("d")


async def test_draining_waits_for_what_is_there(opened: Opened) -> None:
    """It returns when the last request has ended well."""
    gate = Gate(opened.engine, "step")
    sink = await opened.submit()
    await until(gate.entered.is_set)
    draining = asyncio.ensure_future(opened.backend.drain(30.0))
    gate.open.set()
    await draining
    assert isinstance(sink.events[-1], Finished)


async def test_after_the_grace_the_rest_is_told(opened: Opened) -> None:
    """A request that has not ended fails with DRAINING, once, though its step goes on."""
    gate = Gate(opened.engine, "step")
    sink = await opened.submit()
    await until(gate.entered.is_set)
    draining = asyncio.ensure_future(opened.backend.drain(0.0))
    assert isinstance(await sink.error(), Draining)
    gate.open.set()
    await draining
    assert sink.kinds.count(Failed) == 1


async def test_who_waits_is_told_a_position(opened: Opened) -> None:
    """The first step is held: those behind it hear their places, and nobody who has started does."""
    gate = Gate(opened.engine, "text")
    sinks = [await opened.submit(name) for name in "abc"]
    await until(lambda: all(any(isinstance(event, Queued) for event in sink.events) for sink in sinks[1:]))
    gate.open.set()
    for sink in sinks:
        await sink.last()
        started = sink.events.index(next(event for event in sink.events if isinstance(event, Started)))
        assert not any(isinstance(event, Queued) for event in sink.events[started:])


async def test_a_request_without_previews_has_none(opened: Opened) -> None:
    """Nothing is drawn that nobody asked for."""
    sink = await opened.submit(preview=PreviewOptions(disabled=True))
    await sink.last()
    assert Preview not in sink.kinds
    assert "previews" not in [
        name for name, renders in opened.engine.calls if renders and renders[0].request.request_id == "a"
    ]
