"""Who calls, and what that caller may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """A known caller. None: no bound.

    `requests_max`: waiting and running at once, attached readers too. `megapixels_per_minute`: output megapixels
    admitted, a bucket that holds one minute. `is_admin`: sees everyone's usage, and may debug.
    """

    name: str
    is_admin: bool = False
    requests_max: int | None = None
    megapixels_per_minute: int | None = None


ANONYMOUS = Caller("anonymous", is_admin=True)  # everyone, where there is no authentication
