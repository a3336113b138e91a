"""Which requests are the same under one key, and what a draft becomes (core/model.py)."""

from dataclasses import replace
from typing import Any

import pytest
from kleinserve.core import (
    AlphaMethod,
    Background,
    Draft,
    ImageFormat,
    OnDisconnect,
    Operation,
    Options,
    Output,
    Pixels,
    PreviewFormat,
    PreviewOptions,
    Priority,
    Reference,
    Size,
)
from kleinserve.errors import InvalidField

from tests.scheduler.scripted import FACTS

SALT = bytes(32)
OPTIONS = Options(seed=7, steps=4, guidance_scale=1.0, idempotency_key="k")
DRAFT = Draft(Operation.EDIT, "a star", (b"one", b"two"), Size(64, 64), OPTIONS, is_seed_drawn=False)
LATENT = PreviewOptions(format=PreviewFormat.LATENT)


def digest(draft: Draft = DRAFT, salt: bytes = SALT) -> bytes:
    return draft.digest(salt, FACTS)


def with_output(**changes: Any) -> Draft:
    return replace(DRAFT, options=replace(OPTIONS, output=replace(OPTIONS.output, **changes)))


def with_options(**changes: Any) -> Draft:
    return replace(DRAFT, options=replace(OPTIONS, **changes))


OTHERS = {
    "operation": replace(DRAFT, operation=Operation.GENERATE),
    "prompt": replace(DRAFT, prompt="a star "),
    "reference": replace(DRAFT, references=(b"one", b"three")),
    "order of references": replace(DRAFT, references=(b"two", b"one")),
    "number of references": replace(DRAFT, references=(b"one",)),
    "where references end": replace(DRAFT, references=(b"onet", b"wo")),
    "width": replace(DRAFT, size=Size(80, 64)),
    "height": replace(DRAFT, size=Size(64, 80)),
    "size by the reference": replace(DRAFT, size=None),
    "seed": with_options(seed=8),
    "seed drawn": replace(DRAFT, is_seed_drawn=True),
    "steps": with_options(steps=5),
    "guidance": with_options(guidance_scale=1.5),
    "format": with_output(format=ImageFormat.WEBP),
    "quality": with_output(quality=80),
    "background": with_output(background=Background.TRANSPARENT),
    "embedded prompt": with_output(embed_prompt=True),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_decides_the_image_makes_it_another_request(other: Draft) -> None:
    """Prompt, references in their order, and each option that changes a byte of the file."""
    assert digest(other) != digest()


SAME = {
    "itself": replace(DRAFT),
    "preview": with_options(preview=PreviewOptions(disabled=True)),
    "priority": with_options(priority=Priority.BATCH),
    "on_disconnect": with_options(on_disconnect=OnDisconnect.DETACH),
    "client_tag": with_options(client_tag="order 7"),
    "key": with_options(idempotency_key="another"),
    "output as a value": with_options(output=Output()),
}


@pytest.mark.parametrize("same", SAME.values(), ids=SAME)
def test_how_it_is_told_makes_no_other_request(same: Draft) -> None:
    """Preview, priority, on_disconnect, tag and the key itself are no part of it."""
    assert digest(same) == digest()


def test_a_drawn_seed_counts_as_none() -> None:
    """The server draws another one each time, and the request is the same."""
    first, again = (replace(with_options(seed=seed), is_seed_drawn=True) for seed in (1, 2))
    assert digest(first) == digest(again)


def test_a_default_size_is_the_same_as_saying_it() -> None:
    """A generation without a size is one of the model's default size."""
    generation = replace(DRAFT, operation=Operation.GENERATE, references=())
    assert digest(replace(generation, size=None)) == digest(replace(generation, size=FACTS.default_size))


def test_digests_are_salted() -> None:
    """Whoever has the database cannot look prompts up by their digests."""
    assert digest(salt=b"another" + bytes(25)) != digest()
    assert len(digest()) == 32


def decoded(width: int, height: int) -> Reference:
    return Reference(Pixels(Size(width, height), 3, b""), b"")


@pytest.mark.parametrize(
    ("given", "references", "size"),
    [
        (Size(64, 80), (decoded(96, 64), decoded(64, 64)), Size(64, 80)),
        (None, (decoded(96, 64), decoded(64, 64)), Size(96, 64)),
        (None, (), FACTS.default_size),
    ],
)
def test_the_size_is_what_was_asked_else_the_first_reference_s_else_the_model_s(
    given: Size | None, references: tuple[Reference, ...], size: Size
) -> None:
    """It is known once the references are decoded."""
    request = replace(DRAFT, size=given).request("id", "web", FACTS, references)
    assert (request.size, request.references, request.caller, request.request_id) == (size, references, "web", "id")
    assert request.options is OPTIONS


def test_latents_that_a_reference_makes_too_large_are_refused() -> None:
    """A preview of more than a mebibyte names every field that makes it so large; switched off it is no matter."""
    sized_by_reference = replace(with_options(preview=LATENT), size=None)
    with pytest.raises(InvalidField) as caught:
        sized_by_reference.request("id", "web", FACTS, (decoded(1040, 1024),))
    fields = [violation.field for violation in caught.value.violations]
    assert fields == ["options.width", "options.height", "options.preview.format"]
    sized_by_reference.request("id", "web", FACTS, (decoded(1024, 1024),))
    off = replace(with_options(preview=replace(LATENT, disabled=True)), size=None)
    off.request("id", "web", FACTS, (decoded(1040, 1024),))


@pytest.mark.parametrize(
    ("has_native_alpha", "methods"),
    [
        (True, (AlphaMethod.OPAQUE, AlphaMethod.NATIVE)),
        (False, (AlphaMethod.OPAQUE, AlphaMethod.DIFFERENCE, AlphaMethod.KEY)),
    ],
)
def test_a_model_cuts_out_by_its_own_alpha_or_by_ours(has_native_alpha: bool, methods: tuple[AlphaMethod, ...]) -> None:
    """Never by both."""
    assert replace(FACTS, has_native_alpha=has_native_alpha).alpha_methods == methods
