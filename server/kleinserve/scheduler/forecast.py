"""What is predicted of works: the seconds that remain of each, its standing, what it takes from the others.

A work's standing is kept until something of it changes. All are predicted with one copy of the cost model, which is
taken anew where the machine has drifted away from it, twice a second at most.
"""

from collections.abc import Callable, Sequence

from kleinserve.core import Priority
from kleinserve.scheduler import policy
from kleinserve.scheduler.admission import Claim
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.policy import Standing
from kleinserve.scheduler.turns import Ration, Turns
from kleinserve.scheduler.work import Need, Work

_PRIORITIES = {priority: rank for rank, priority in enumerate(Priority)}  # in the policy's order
_DRIFT = 0.1  # from which on everything is predicted anew
_RENEW_SECONDS = 0.5


class Forecast:
    """The cost model, applied to works. Read from every thread; `observe` is called by the engine's threads."""

    def __init__(self, cost: Cost, clock: Callable[[], float], turns: Turns):
        self.cost, self._clock, self._turns = cost, clock, turns
        self._kept, self._renewed, self.epoch = cost.frozen(), clock(), 0
        self._full_work = 0.0  # of a step that is shared by as many as may

    def observe(self, stage: str, units: float, seconds: float) -> float:
        """Follow one run of a stage; returns the prediction's relative error."""
        error = self.cost.observe(stage, units, seconds)
        now = self._clock()
        if now - self._renewed >= _RENEW_SECONDS and self.cost.differs(self._kept, _DRIFT):
            self._kept, self._renewed = self.cost.frozen(), now
            self.epoch += 1
        return error

    def use(self, cost: Cost, full_work: float = 0.0) -> None:
        """Predict with another cost model from now on; `full_work`: of a step that is shared by as many as may."""
        self.cost, self._kept, self._full_work = cost, cost.frozen(), full_work
        self.epoch += 1

    def remaining(self, work: Work) -> float:
        """Seconds until its image, were it alone from now on."""
        whole = self._kept.remaining(work.demand, work.steps_left, is_begun=work.is_begun)
        return max(0.0, whole - work.at_hand_seconds)

    def idle(self, work: Work) -> float:
        """Seconds that it would take on a server that does nothing else."""
        return self._kept.idle(work.demand, work.render.total_steps)

    def step_seconds(self, works: Sequence[Work]) -> float:
        """Seconds of a step that these share."""
        return self._kept.lines["step"].seconds(sum(work.demand.work for work in works))

    def beside_seconds(self, need: Need, works: Sequence[Work]) -> float:
        """Seconds of what the works need, done for all at once on the thread beside the steps."""
        cost = self._kept
        if need is Need.TEXT:
            return cost.lines["text"].seconds(len(works))
        if need is Need.DECODE:
            return cost.decoding(*(work.demand for work in works))
        if need is Need.SECOND:  # the first picture is the reference of the second
            return cost.lines["references"].seconds(sum(work.demand.output_megapixels for work in works))
        megapixels = sum(work.demand.reference_megapixels for work in works)
        return cost.lines["references"].seconds(megapixels) if megapixels else 0.0

    def claim(self, work: Work) -> Claim:
        """What admission sees of it; with its standing, which the policy sees."""
        epoch, claim = self.epoch, work.claim
        if claim is None or work.claim_epoch != epoch:
            claim = self._claim(work)
            work.claim, work.claim_epoch = claim, epoch
        return claim

    def claims(self, works: Sequence[Work], now: float) -> list[Claim]:
        """What admission sees of them, with what is under way."""
        claims = []
        for work in works:
            claim = self.claim(work)
            busy = work.busy_until - now if work.is_held else 0.0
            claims.append(Claim(claim.standing, claim.share, busy) if busy > 0 else claim)
        return claims

    def _claim(self, work: Work) -> Claim:
        cost = self._kept
        standing = Standing(
            priority=_PRIORITIES[work.priority],
            account=work.account,
            arrived=work.arrived,
            deadline=work.deadline,
            steps_done=work.render.steps_done,
            steps_left=work.steps_left,
            tokens=work.demand.tokens,
            step=cost.added(work.demand),
            remaining=self.remaining(work),
            whole=cost.remaining(work.demand, work.render.total_steps, is_begun=False),
            held_up=cost.lines["step"].seconds(self._full_work),
        )
        return Claim(standing, cost.share(work.demand, work.steps_left, is_begun=work.is_begun))

    def standings(self, works: Sequence[Work]) -> list[Standing]:
        return [self.claim(work).standing for work in works]

    def order(self, works: Sequence[Work], now: float, ration: Ration | None = None) -> list[Work]:
        """The works, who goes first first."""
        aged_first = ration is None or ration.aged_first
        return [works[i] for i in policy.order(self.standings(works), now, aged_first=aged_first)]

    def pick(self, works: Sequence[Work], now: float, tokens_max: int, ration: Ration) -> list[Work]:
        """The works of the next step."""
        standings, fixed = self.standings(works), self._kept.fixed
        return [works[i] for i in policy.pick(standings, now, tokens_max, fixed, aged_first=ration.aged_first)]

    def charge(self, works: Sequence[Work], seconds: float, parts: Sequence[float]) -> None:
        """Divide the seconds of one run among its works and their callers, by each one's part."""
        total = sum(parts)
        for work, part in zip(works, parts, strict=True):
            own = seconds * part / total if total else seconds / len(works)
            work.accelerator_seconds += own
            self._turns.serve(work.account, own)
