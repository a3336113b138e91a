"""Predicted seconds, learned from what was measured: the estimates in the events. Knows numbers, not jobs."""

from dataclasses import dataclass, field

_WEIGHT = 0.2  # of a new measurement: five of them make most of the estimate


@dataclass
class Rate:
    """Seconds per unit, an exponential moving average; 0 until the first measurement."""

    seconds: float = 0.0

    def observe(self, seconds: float, units: int) -> None:
        rate = seconds / max(1, units)
        self.seconds = rate if self.seconds == 0.0 else (1 - _WEIGHT) * self.seconds + _WEIGHT * rate


@dataclass
class Cost:
    """Measured rates: a step per token, a decode and an encode per pixel, a beginning (text, references) per job."""

    step: Rate = field(default_factory=Rate)
    decode: Rate = field(default_factory=Rate)
    encode: Rate = field(default_factory=Rate)
    begin: Rate = field(default_factory=Rate)

    def steps(self, tokens: int, steps: int) -> float:
        """Seconds of `steps` steps of `tokens` tokens."""
        return self.step.seconds * tokens * steps

    def finish(self, pixels: int) -> float:
        """Seconds from the last step to the encoded image."""
        return (self.decode.seconds + self.encode.seconds) * pixels

    def whole(self, tokens: int, steps: int, pixels: int) -> float:
        """Seconds of a request alone, from its first step to its encoded image."""
        return self.begin.seconds + self.steps(tokens, steps) + self.finish(pixels)
