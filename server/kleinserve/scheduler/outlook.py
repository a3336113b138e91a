"""What is predicted of jobs: the seconds that remain of each, its standing, what it takes from the others."""

from collections.abc import Sequence

from kleinserve.core import Priority
from kleinserve.scheduler import policy
from kleinserve.scheduler.admission import Claim
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.job import Job
from kleinserve.scheduler.policy import Standing, Turns

_PRIORITIES = tuple(Priority)  # in the policy's order


class Outlook:
    """The cost model and the callers' turns, applied to jobs. Read from every thread.

    `longest`: the share of a decode that passes without a pause.
    """

    def __init__(self, cost: Cost, turns: Turns, longest: float):
        self.cost, self.turns, self._longest = cost, turns, longest

    def remaining(self, job: Job) -> float:
        """Seconds until its image, were it alone from now on."""
        whole = self.cost.remaining(job.load, job.steps_left, is_begun=job.is_begun)
        return max(0.0, whole - job.worked_seconds)

    def end(self, jobs: Sequence[Job]) -> float:
        """Seconds for which the thread beside the steps begins the jobs, or decodes them, at once."""
        seconds = self.cost.decoding if jobs[0].drawing.is_denoised else self.cost.beginning
        return seconds(*(job.load for job in jobs))

    def standing(self, job: Job) -> Standing:
        """What the policy sees of it."""
        return Standing(
            priority=_PRIORITIES.index(job.request.priority),
            caller=job.request.caller,
            served=self.turns.served(job.request.caller),
            arrived=job.submitted,
            deadline=job.deadline,
            steps_done=job.drawing.steps_done,
            tokens=job.load.tokens,
            step=self.cost.added(job.load),
            remaining=self.remaining(job),
            whole=self.cost.remaining(job.load, job.drawing.total_steps, is_begun=False),
        )

    def claim(self, job: Job) -> Claim:
        """What admission sees of it."""
        share = self.cost.share(job.load, job.steps_left, is_begun=job.is_begun)
        if not job.is_begun:
            held = 0.0
        elif job.drawing.is_denoised:
            held = self._longest * self.end([job])
        else:
            held = self.cost.lines["step"].seconds(job.load.work)
        return Claim(self.standing(job), share, held)

    def ordered(self, jobs: Sequence[Job], now: float) -> list[Job]:
        """The jobs, who goes first first."""
        return [jobs[i] for i in policy.order([self.standing(job) for job in jobs], now)]

    def picked(self, jobs: Sequence[Job], now: float, tokens_max: int) -> list[Job]:
        """The jobs of the next step."""
        return [jobs[i] for i in policy.pick([self.standing(job) for job in jobs], now, tokens_max, self.cost.fixed)]

    def stepped(self, jobs: Sequence[Job], seconds: float) -> None:
        """Charge the jobs' callers with a step, by the work that each had in it."""
        work = sum(job.load.work for job in jobs)
        for job in jobs:
            self.turns.spend(job.request.caller, seconds * job.load.work / work)
