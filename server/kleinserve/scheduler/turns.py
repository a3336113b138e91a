"""Whose turn it is: callers among each other, and what is due by its age beside the rest."""

import threading
from dataclasses import dataclass

AGED_SHARE = 0.5  # of a thread's time for what is due by its age; by simulation it keeps the stretch at 80 % load


@dataclass(eq=False, slots=True)
class Account:
    """A caller's seconds of service, and how many jobs it has here."""

    served: float = 0.0
    jobs: int = 0


class Turns:
    """The callers' accounts, so that one with many jobs does not hold up one with few.

    A caller that comes back starts level with what each present one has been due: neither owed for its absence nor
    charged twice, and those who come and go do not pass one who stays.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._due = 0.0  # seconds of one who has been there always, had all been shared evenly
        self._lock = threading.Lock()

    def come(self, caller: str) -> Account:
        """The account of a caller of whom a job arrived."""
        with self._lock:
            account = self._accounts.setdefault(caller, Account(self._due))
            account.jobs += 1
            return account

    def go(self, caller: str) -> None:
        """A job of the caller has ended; with its last one the account is closed."""
        with self._lock:
            account = self._accounts[caller]
            account.jobs -= 1
            if account.jobs == 0:
                del self._accounts[caller]

    def serve(self, account: Account, seconds: float) -> None:
        """One of the account's jobs had so many seconds of service."""
        with self._lock:
            account.served += seconds
            self._due += seconds / max(1, len(self._accounts))


class Ration:
    """Divides one thread's seconds between what is due by its age and the rest, while both want them."""

    def __init__(self, share: float = AGED_SHARE):
        self._share, self._owed = share, 0.0

    @property
    def aged_first(self) -> bool:
        """Whether it is the turn of what is due by its age."""
        return self._owed <= 0

    def spend(self, seconds: float, *, is_aged: bool) -> None:
        """Seconds that went to the one or to the other. For the longest aged one the others are owed their part."""
        if is_aged:
            self._owed = max(self._owed, seconds * (1 - self._share) / self._share)
        else:
            self._owed = max(0.0, self._owed - seconds)
