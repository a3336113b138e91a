"""Predicted seconds of every stage: measured at start, corrected while running. Knows amounts of work, not jobs."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

from kleinserve.core import Demand

STAGES = {
    "text": "prompts",
    "references": "megapixels",
    "step": "GFLOP",
    "decode": "megapixels",
    "encode": "megapixels",
}
_DRIFT_WEIGHT = 0.1  # of a new measurement: ten of them make most of the correction
_DRIFT_MIN, _DRIFT_MAX = 0.25, 8.0  # one measurement that the machine disturbed must not shut the door
_SECONDS_MAX = 1000.0  # of a unit of any stage, on the slowest machine
_SATURATED = 0.95  # of a step's time is work at the saturating budget; the rest is what every step costs


@dataclass
class Line:
    """Seconds = drift × (fixed + per_unit × units). `drift` follows the machine while it runs."""

    fixed: float = 0.0
    per_unit: float = 0.0
    drift: float = 1.0

    @classmethod
    def through(cls, points: Iterable[tuple[float, float]]) -> "Line":
        """The line nearest to (units, seconds) in relative error, nothing negative; a single point lies on it.

        Points without seconds say nothing; without any other it is not known, as a new line is.
        """
        scaled = [(1 / seconds, units / seconds) for units, seconds in points if seconds > 0]
        if not scaled:
            return cls()
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

    def remaining(self, demand: Demand, steps: int, *, is_begun: bool) -> float:
        """Seconds until the image of a request with `steps` steps to go, were it alone from now on."""
        beside = self._beside(demand, is_begun=is_begun) + self.lines["encode"].seconds(demand.output_megapixels)
        return beside + steps * self.lines["step"].seconds(demand.work)

    def idle(self, demand: Demand, steps: int) -> float:
        """Seconds of a whole request on a server that does nothing else: without what load has made slower."""
        lines = self.lines.items()
        calm = Cost({stage: Line(line.fixed, line.per_unit, min(1.0, line.drift)) for stage, line in lines})
        return calm.remaining(demand, steps, is_begun=False)

    @property
    def fixed(self) -> float:
        """Seconds of a step whoever shares it."""
        return self.lines["step"].drift * self.lines["step"].fixed

    def added(self, demand: Demand) -> float:
        """Seconds by which a request lengthens a step that it shares."""
        return self.lines["step"].drift * self.lines["step"].per_unit * demand.work

    def share(self, demand: Demand, steps: int, *, is_begun: bool) -> Share:
        """What the request takes from the others: of the fixed part of a step only what a full step spreads."""
        stepping = steps * self.added(demand) / _SATURATED
        return Share(stepping, self._beside(demand, is_begun=is_begun))

    def saturating_tokens(self, work_per_token: float) -> int:
        """Tokens from which on a larger step is hardly cheaper per token; 0 where the fixed part is not known."""
        step = self.lines["step"]
        if not self.is_calibrated or step.per_unit == 0.0:
            return 0
        return round(_SATURATED / (1 - _SATURATED) * step.fixed / (step.per_unit * work_per_token))

    def beginning(self, *demands: Demand) -> float:
        """Seconds for which requests are begun at once."""
        megapixels = sum(demand.reference_megapixels for demand in demands)
        references = self.lines["references"].seconds(megapixels) if megapixels else 0.0
        return self.lines["text"].seconds(len(demands)) + references

    def decoding(self, *demands: Demand) -> float:
        """Seconds for which requests are decoded at once."""
        return self.lines["decode"].seconds(sum(demand.output_megapixels for demand in demands))

    def _beside(self, demand: Demand, *, is_begun: bool) -> float:
        return demand.passes * self.decoding(demand) + (0.0 if is_begun else self.beginning(demand))

    def dump(self) -> dict[str, dict[str, float]]:
        """The lines as JSON takes them, without their drift."""
        return {stage: asdict(Line(line.fixed, line.per_unit)) for stage, line in self.lines.items()}

    @classmethod
    def load(cls, dumped: Mapping[str, Mapping[str, float]]) -> "Cost":
        """What `dump` gave. Raises: KeyError, TypeError, ValueError where it is something else."""
        lines = {stage: Line(**dumped[stage]) for stage in STAGES}
        for stage, line in lines.items():
            numbers = (line.fixed, line.per_unit)
            if line.drift != 1.0 or not all(0.0 <= number <= _SECONDS_MAX for number in numbers):
                raise ValueError(f"{stage}: {line} is not what a stage takes")
        return cls(lines, is_calibrated=True)

    def frozen(self) -> "Cost":
        """A copy that no longer follows."""
        return Cost({stage: replace(line) for stage, line in self.lines.items()}, self.is_calibrated)

    def differs(self, other: "Cost", share: float) -> bool:
        """Whether a stage takes more or less than with `other`, by more than this share."""
        return any(
            abs(line.seconds(1) - other.lines[stage].seconds(1)) > share * other.lines[stage].seconds(1)
            for stage, line in self.lines.items()
        )
