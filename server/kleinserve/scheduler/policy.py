"""Which jobs share the next step: a pure function of the jobs and the token budget."""

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Sized(Protocol):
    """What the policy sees of a job."""

    @property
    def tokens(self) -> int: ...


J = TypeVar("J", bound=Sized)


def pick(running: Sequence[J], waiting: Sequence[J], tokens_max: int) -> list[J]:
    """The jobs of the next step, oldest first, while their tokens fit; the first always goes, however large.

    Running jobs come before waiting ones, and nothing overtakes a job that does not fit: nobody starves.
    """
    picked: list[J] = []
    tokens = 0
    for job in (*running, *waiting):
        if picked and tokens + job.tokens > tokens_max:
            break
        picked.append(job)
        tokens += job.tokens
    return picked
