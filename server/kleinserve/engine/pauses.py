"""Where long work of the VAE lets short work go first, and a clock that stands still meanwhile."""

import time
from collections.abc import Callable

from diffusers import AutoencoderKLFlux2
from diffusers.models.resnet import ResnetBlock2D

_EVERY_SECONDS = 0.005  # to look for what is more urgent is not free
_LONGEST = 0.2  # of the whole: mini's last block but one


class Pauses:
    """Between residual blocks of a VAE, where they are offered, `do` may use the VAE itself.

    `ready` is called before it, and returns when the device has done what was asked of it. `longest`: the share of an
    encode or decode that passes without one, at most.
    """

    def __init__(self, vae: AutoencoderKLFlux2, ready: Callable[[], None], *, is_offered: bool):
        self.do: Callable[[], None] | None = None
        self.longest = _LONGEST if is_offered else 1.0
        self._ready, self._paused, self._looked = ready, 0.0, 0.0
        for module in vae.modules():
            if is_offered and isinstance(module, ResnetBlock2D):
                module.register_forward_hook(lambda *_: self._offer())

    def seconds(self) -> float:
        """A clock for the thread that computes there: it does not count what was done in a pause."""
        return time.perf_counter() - self._paused

    def _offer(self) -> None:
        if self.do is None or time.perf_counter() - self._looked < _EVERY_SECONDS:
            return
        self._ready()
        before, started = self._paused, time.perf_counter()
        try:
            self.do()
        finally:
            self._looked = time.perf_counter()
            self._paused = before + self._looked - started  # pauses within it are in it
