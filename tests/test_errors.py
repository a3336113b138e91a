"""Errors are values, and exactly those of the contract."""

import pickle

import pytest
from kleinserve.errors import KleinError, RefusedReference, quoted

from tests import refusals

CONTRACT = """
INVALID_FIELD                          INVALID_ARGUMENT
REFERENCE_UNREADABLE                   INVALID_ARGUMENT
REFERENCE_UNSUPPORTED                  INVALID_ARGUMENT
REFERENCE_TOO_LARGE                    INVALID_ARGUMENT
ALPHA_UNAVAILABLE                      FAILED_PRECONDITION
RESULT_GONE                            FAILED_PRECONDITION
QUEUE_FULL                   retry     RESOURCE_EXHAUSTED
ACCELERATOR_OUT_OF_MEMORY    retry     RESOURCE_EXHAUSTED
QUOTA_EXCEEDED               retry     RESOURCE_EXHAUSTED
DEADLINE_UNREACHABLE         retry     RESOURCE_EXHAUSTED
DEADLINE_UNREACHABLE                   DEADLINE_EXCEEDED
DEADLINE_PASSED                        DEADLINE_EXCEEDED
IDEMPOTENCY_KEY_REUSED                 ALREADY_EXISTS
UNKNOWN_KEY                            NOT_FOUND
NOT_READY                    retry     UNAVAILABLE
DRAINING                     retry     UNAVAILABLE
LEDGER_UNAVAILABLE           retry     UNAVAILABLE
CANCELLED                              CANCELLED
READER_STALLED                         ABORTED
UNAUTHENTICATED                        UNAUTHENTICATED
PERMISSION_DENIED                      PERMISSION_DENIED
NOT_IMPLEMENTED                        UNIMPLEMENTED
INTERNAL                               INTERNAL
"""


def kinds(kind: type[KleinError]) -> set[type[KleinError]]:
    """The class and all below it."""
    return {kind}.union(*map(kinds, kind.__subclasses__()))


def test_the_contract_has_a_class_for_each_reason_and_no_other() -> None:
    """Reason, status, and whether the answer says when to come back, are those of the contract's table."""
    ours = {
        (error.reason, *(["retry"] if error.retry_seconds is not None else []), error.status)
        for error in refusals.EVERY
    }
    assert ours == {tuple(line.split()) for line in CONTRACT.strip().splitlines()}
    ours_by_class = kinds(KleinError) - {KleinError, RefusedReference}
    assert {kind for kind in ours_by_class if kind.__module__ == "kleinserve.errors"} == set(map(type, refusals.EVERY))


@pytest.mark.parametrize("error", refusals.EVERY, ids=refusals.name)
def test_an_error_travels_between_processes(error: KleinError) -> None:
    """Pickled and back it is of the same class, with the same words and the same facts."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert (again.reason, again.status) == (error.reason, error.status)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (17, "17"),
        ("a\nb", "'a\\nb'"),
        ("x" * 62, "'" + "x" * 62 + "'"),
        ("x" * 63, "'" + "x" * 62 + "…"),
        ("\0" * 1_000_000, "'" + "\\x00" * 15 + "\\x…"),
        (10**100, "1" + "0" * 62 + "…"),
    ],
)
def test_a_refused_value_is_quoted_in_64_characters(value: object, words: str) -> None:
    """What a caller sent is shown so that nothing in it acts, and cut."""
    assert quoted(value) == words
    assert len(words) <= 64


def test_a_message_names_every_field() -> None:
    """The message alone says what is wrong, for those who do not read details."""
    assert str(refusals.EVERY[0]) == "options.width: 100; a multiple of 16; prompt: blank — 100 %\n"
    assert str(refusals.EVERY[2]) == "references[1].image: animated"
    assert str(refusals.EVERY[8]) == "caller web is at its limit megapixels_per_minute = 120"
