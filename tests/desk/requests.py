"""Requests, jobs and events for the desk's tests."""

from kleinserve.core import (
    ANONYMOUS,
    Accepted,
    AlphaMethod,
    EncodedImage,
    ImageFormat,
    Operation,
    Options,
    Preview,
    PreviewFormat,
    Request,
    Size,
    Spent,
    Usage,
)
from kleinserve.desk.job import Job, Stage
from kleinserve.identity.limits import Grant, Quota

USAGE = Usage(4096, 1, 0, 14_000, True, "test")
OPTIONS = Options(seed=7, steps=4, guidance_scale=1.0)
REQUEST = Request("a", Operation.GENERATE, "a star", (), Size(64, 64), OPTIONS)
ACCEPTED = Accepted(7, Size(64, 64), 4, 1.0, "mini", (), 3, False, 0.0, 0.1, USAGE)
IMAGE = EncodedImage(ImageFormat.PNG, Size(64, 64), AlphaMethod.OPAQUE, b"file", bytes(32))
SPENT = Spent(steps_run=4, accelerator_microseconds=1000, max_step_requests=2)


def grant() -> Grant:
    return Quota(lambda: 0).admit(ANONYMOUS)


def preview(step: int, skipped: int = 0) -> Preview:
    return Preview(step, 4, PreviewFormat.JPEG, 8, 8, 0, b"picture", skipped)


def job(stages: list[Stage] | None = None) -> Job:
    """A job that has been accepted; `stages` gets each stage that it leaves."""

    def changed(job: Job, before: Stage) -> None:
        if stages is not None:
            stages.append(before)

    made = Job(REQUEST, USAGE, "record", 0, grant(), changed, lambda job, last: None)
    made.accepted = ACCEPTED
    return made
