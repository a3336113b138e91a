"""What the stepping thread tells of each step, with the real engine."""

from collections import defaultdict

from kleinserve.config import load
from kleinserve.core import Operation, Request, Size, Usage
from kleinserve.engine import checkpoint
from kleinserve.engine.engine import Engine
from kleinserve.metrics import Metrics
from kleinserve.scheduler.cost import Cost
from kleinserve.scheduler.job import Job, load_of
from kleinserve.scheduler.outlook import Outlook
from kleinserve.scheduler.policy import Turns
from kleinserve.scheduler.stepping import Stepping
from kleinserve.scheduler.worker import Hands


def test_every_step_is_told_once() -> None:
    """Each job hears of each of its steps, and sees a preview of each, whatever steps the others have."""
    engine = Engine(checkpoint.find("mini"), load({"threads": 1}))
    told: dict[Job, list[tuple[int, int]]] = defaultdict(list)
    seen: dict[Job, list[int]] = defaultdict(list)
    failed: list[Job] = []
    hands = Hands(
        started=lambda jobs: None,
        progress=lambda job, progress: told[job].append((progress.step, progress.total_steps)),
        preview=lambda job, preview, step: seen[job].append(step),
        picture=lambda job, picture: None,
        failed=lambda job, error: failed.append(job),
        died=lambda error: None,
    )
    stepping = Stepping(engine, Outlook(Cost(), Turns(), 1.0), Metrics(), hands, 1 << 20)
    jobs = []
    for seed, steps in enumerate((1, 2, 4)):
        drawing = engine.drawing(Request(f"{seed}", Operation.GENERATE, "a star", (), Size(64, 64), seed, steps, 1.0))
        usage = Usage(0, 0, 0, 0, True, "")
        jobs.append(Job(drawing.request, drawing, load_of(engine, drawing), usage, None, 0, lambda job: None))
    engine.begin([job.drawing for job in jobs])
    while chosen := stepping.choose(jobs):
        stepping.step(chosen)
    for job, steps in zip(jobs, (1, 2, 4), strict=True):
        assert told[job] == [(step, steps) for step in range(1, steps + 1)]
        assert seen[job] == [step for step in range(1, steps + 1) if job.request.preview.wants(step, steps)]
    assert failed == []
    assert jobs[0].max_step_requests == 3
