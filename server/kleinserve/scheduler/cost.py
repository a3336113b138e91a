"""Predicted seconds of every stage: measured at start, corrected while running. Knows amounts of work, not jobs."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

STAGES = {
    "text": "prompts",
    "references": "megapixels",
    "step": "GFLOP",
    "decode": "megapixels",
    "encode": "megapixels",
}
_DRIFT_WEIGHT = 0.1  # of a new measurement: ten of them make most of the correction
_DRIFT_MIN, _DRIFT_MAX = 0.25, 8.0  # one measurement that the machine disturbed must not shut the door
_SATURATED = 0.9  # of a step's time is work at the saturating budget; the rest is what every step costs


@dataclass
class Line:
    """Seconds = drift × (fixed + per_unit × units). `drift` follows the machine while it runs."""

    fixed: float = 0.0
    per_unit: float = 0.0
    drift: float = 1.0

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> "Line":
        """The line nearest to (units, seconds) in relative error, nothing negative; a single point lies on it."""
        scaled = [(1 / seconds, units / seconds) for units, seconds in points]
        ones, units = sum(a for a, _ in scaled), sum(b for _, b in scaled)
        aa, ab, bb = sum(a * a for a, _ in scaled), sum(a * b for a, b in scaled), sum(b * b for _, b in scaled)
        determinant = aa * bb - ab * ab
        if determinant > 1e-9 * aa * bb:
            fixed, per_unit = (ones * bb - units * ab) / determinant, (units * aa - ones * ab) / determinant
            if fixed >= 0 and per_unit >= 0:
                return cls(fixed, per_unit)
            if per_unit < 0:
                return cls(ones / aa, 0.0)
        return cls(0.0, units / bb)

    def seconds(self, units: float) -> float:
        return self.drift * (self.fixed + self.per_unit * units)

    def observe(self, units: float, seconds: float) -> float:
        """Follow a measurement; returns how far the prediction was off, as a share of what was measured."""
        predicted = self.seconds(units)
        if predicted == 0.0:  # never measured: this is the first
            self.per_unit = seconds / units if units else 0.0
            return 0.0
        ratio = min(max(seconds / predicted * self.drift, _DRIFT_MIN), _DRIFT_MAX)
        self.drift += _DRIFT_WEIGHT * (ratio - self.drift)
        return abs(predicted - seconds) / seconds if seconds else 0.0


@dataclass(frozen=True)
class Load:
    """What one request asks of the stages.

    `work`: GFLOP of one of its steps; `tokens`: what it adds to a step; `passes`: those that are not decoded yet.
    """

    work: float
    tokens: int
    output_megapixels: float
    reference_megapixels: float
    passes: int = 1


@dataclass(frozen=True)
class Share:
    """Seconds that requests take from a busy server, by the thread that spends them."""

    stepping: float
    beside: float

    def __add__(self, other: "Share") -> "Share":
        return Share(self.stepping + other.stepping, self.beside + other.beside)


@dataclass
class Cost:
    """One line per stage. `is_calibrated`: measured at start, so that a deadline may be refused by it."""

    lines: dict[str, Line] = field(default_factory=lambda: {stage: Line() for stage in STAGES})
    is_calibrated: bool = False

    def observe(self, stage: str, units: float, seconds: float) -> float:
        """Follow one run of a stage; returns the prediction's relative error."""
        return self.lines[stage].observe(units, seconds)

    def remaining(self, load: Load, steps: int, *, is_begun: bool) -> float:
        """Seconds until the image of a request with `steps` steps to go, were it alone from now on."""
        ends = self._ends(load, is_begun=is_begun) + self.lines["encode"].seconds(load.output_megapixels)
        return ends + steps * self.lines["step"].seconds(load.work)

    def idle(self, load: Load, steps: int) -> float:
        """Seconds of a whole request on a server that does nothing else: without what load has made slower."""
        lines = self.lines.items()
        calm = Cost({stage: Line(line.fixed, line.per_unit, min(1.0, line.drift)) for stage, line in lines})
        return calm.remaining(load, steps, is_begun=False)

    @property
    def fixed(self) -> float:
        """Seconds of a step whoever shares it."""
        return self.lines["step"].drift * self.lines["step"].fixed

    def added(self, load: Load) -> float:
        """Seconds by which a request lengthens a step that it shares."""
        return self.lines["step"].drift * self.lines["step"].per_unit * load.work

    def share(self, load: Load, steps: int, *, is_begun: bool) -> Share:
        """What the request takes from the others: of the fixed part of a step only what a full step spreads."""
        stepping = steps * self.added(load) / _SATURATED
        return Share(stepping, self._ends(load, is_begun=is_begun))

    def saturating_tokens(self, work_per_token: float) -> int:
        """Tokens from which on a larger step is hardly cheaper per token; 0 where the fixed part is not known."""
        step = self.lines["step"]
        if not self.is_calibrated or step.per_unit == 0.0:
            return 0
        return int(_SATURATED / (1 - _SATURATED) * step.fixed / (step.per_unit * work_per_token))

    def beginning(self, *loads: Load) -> float:
        """Seconds for which requests are begun at once."""
        megapixels = sum(load.reference_megapixels for load in loads)
        references = self.lines["references"].seconds(megapixels) if megapixels else 0.0
        return self.lines["text"].seconds(len(loads)) + references

    def decoding(self, *loads: Load) -> float:
        """Seconds for which requests are decoded at once."""
        return self.lines["decode"].seconds(sum(load.output_megapixels for load in loads))

    def _ends(self, load: Load, *, is_begun: bool) -> float:
        return load.passes * self.decoding(load) + (0.0 if is_begun else self.beginning(load))

    def dump(self) -> dict[str, dict[str, float]]:
        """The lines as JSON takes them, without their drift."""
        return {stage: asdict(Line(line.fixed, line.per_unit)) for stage, line in self.lines.items()}

    @classmethod
    def load(cls, dumped: Mapping[str, Mapping[str, float]]) -> "Cost":
        """What `dump` gave. Raises: KeyError, TypeError where it is something else."""
        return cls({stage: Line(**dumped[stage]) for stage in STAGES}, is_calibrated=True)
