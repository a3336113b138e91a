"""Whose reference is decoded next. Pure: knows nothing of processes, files or the clock."""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class _Turn(Generic[Item]):
    seconds: float  # spent on it, and due before it came
    waiting: deque[Item] = field(default_factory=deque)
    running: int = 0


class Turns(Generic[Item]):
    """Items wait in order behind their turn's name; the turn with the fewest running, then the least spent, is next.

    So one whose items take seconds each waits for one whose items take milliseconds, and not the other way round.
    A turn is forgotten when nothing of it waits or runs. A new one starts level with what each has been due so far, so
    that those who come and go, under whatever names, never starve one who stays.
    """

    def __init__(self) -> None:
        self._turns: dict[str, _Turn[Item]] = {}
        self._due = 0.0  # seconds of one who has been there always, had all been shared evenly

    def add(self, name: str, item: Item) -> None:
        if name not in self._turns:
            self._turns[name] = _Turn(seconds=self._due)
        self._turns[name].waiting.append(item)

    def take(self) -> Item | None:
        """The next item, which runs from now on; None if nothing waits. Cost: one look at each turn."""
        waiting = [turn for turn in self._turns.values() if turn.waiting]
        if not waiting:
            return None
        turn = min(waiting, key=lambda turn: (turn.running, turn.seconds))
        turn.running += 1
        return turn.waiting.popleft()

    def end(self, name: str, seconds: float) -> None:
        """One of the turn's running items has ended after these seconds."""
        turn = self._turns[name]
        turn.running -= 1
        turn.seconds += seconds
        self._due += seconds / len(self._turns)
        self._forget(name)

    def withdraw(self, name: str, item: Item) -> bool:
        """Remove an item that waits. False: it does not wait, so it runs or has ended."""
        turn = self._turns.get(name)
        if turn is None or item not in turn.waiting:
            return False
        turn.waiting.remove(item)
        self._forget(name)
        return True

    def clear(self) -> list[Item]:
        """Everything that waits, which waits no longer."""
        items = [item for turn in self._turns.values() for item in turn.waiting]
        for turn in self._turns.values():
            turn.waiting.clear()
        return items

    def _forget(self, name: str) -> None:
        turn = self._turns[name]
        if not turn.waiting and not turn.running:
            del self._turns[name]
