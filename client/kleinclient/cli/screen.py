"""What a person sees while one image is made: where it stands, how long it takes, what it looks like so far."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from kleinclient import events
from kleinclient.cli.picture import decoded, drawing

REFRESHES_PER_SECOND = 10  # fast steps are seen, slow terminals are not flooded
TENTHS_BELOW = 10.0  # seconds left are shown with a tenth below this


class Screen:
    """Draws events on the terminal, on standard output if it is one, else on standard error, else nowhere."""

    def __init__(self, server: str, *, quiet: bool):
        self._console = Console(file=sys.stdout if sys.stdout.isatty() else sys.stderr, quiet=quiet)
        is_shown = self._console.is_terminal and not quiet
        self._draw, self._in_place = drawing(self._console) if is_shown else (None, False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            TextColumn("{task.fields[left]}"),
            console=self._console,
        )
        self._bar = self._progress.add_task(f"asking {server}", total=None, left="")
        self._picture: RenderableType = ""
        self._live = Live(
            get_renderable=self._view, console=self._console, transient=True, refresh_per_second=REFRESHES_PER_SECOND
        )
        self._is_shown = is_shown

    def __enter__(self) -> Self:
        if self._is_shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, event: events.Event, path: Path | None = None) -> None:
        """Bring the screen up to date; `path`, where a preview was written, is not shown."""
        match event:
            case events.Retrying(delay=delay, message=message):
                self._say(f"{message}; again in {spoken(delay)}")
            case events.Accepted(steps=steps, estimated_wait=wait, estimated_duration=duration):
                self._say("accepted", _left(wait + duration), total=steps)
            case events.Queued(position=position, estimated_wait=wait):
                place = "next" if position == 0 else f"{position} ahead"
                self._say(f"in the queue, {place}", f"starts in {spoken(wait)}" if wait else "")
            case events.Started():
                self._say("started")
            case events.Progress(step=step, total_steps=total, estimated_remaining=left):
                self._say(f"step {step} of {total}", _left(left), total=total, completed=step)
            case events.Preview():
                self._show_picture(event)
            case events.Image():
                self._picture = ""

    def show_result(self, image: events.Image, path: Path) -> None:
        """Leave the image on the terminal, where it can draw it, and say on standard output what it took."""
        if self._draw and (picture := decoded(image)):
            self._console.print(self._draw(picture))
        print(path, image)

    def _say(self, words: str, left: str = "", *, total: int | None = None, completed: int | None = None) -> None:
        self._progress.update(self._bar, description=words, left=left, total=total, completed=completed)

    def _show_picture(self, preview: events.Preview) -> None:
        if self._draw and (picture := decoded(preview)):
            drawn = self._draw(picture)
            if self._in_place:
                self._picture = drawn
            else:
                self._console.print(drawn)

    def _view(self) -> RenderableType:
        return Group(self._picture, self._progress) if self._picture else self._progress


def _left(seconds: float) -> str:
    return f"{spoken(seconds)} left" if seconds else ""


def spoken(seconds: float) -> str:
    """A duration as people say it: "0.8 s", "12 s", "3 min 20 s"."""
    if seconds < TENTHS_BELOW:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
