"""Which steps have previews, and that a request is a value."""

import pickle
from dataclasses import replace

import pytest
from kleinserve.core import Background, Output, Pixels, PreviewFormat, PreviewOptions, Reference, Size

from tests.desk.requests import REQUEST


@pytest.mark.parametrize(
    ("options", "steps", "shown"),
    [
        (PreviewOptions(), 4, [1, 2, 3, 4]),
        (PreviewOptions(every_n_steps=2), 5, [2, 4, 5]),
        (PreviewOptions(every_n_steps=2), 4, [2, 4]),
        (PreviewOptions(every_n_steps=50), 4, [4]),
        (PreviewOptions(format=PreviewFormat.LATENT), 4, [1, 2, 3]),
        (PreviewOptions(format=PreviewFormat.LATENT, every_n_steps=3), 5, [3]),
        (PreviewOptions(format=PreviewFormat.LATENT), 1, []),
        (PreviewOptions(disabled=True), 4, []),
    ],
)
def test_every_n_th_step_and_the_last_have_a_preview(options: PreviewOptions, steps: int, shown: list[int]) -> None:
    """Where they are latents the last has none: it would be the image."""
    assert [step for step in range(1, steps + 1) if options.wants(step, steps)] == shown


def test_a_request_travels_between_processes() -> None:
    """With its references it can be pickled, and is equal afterwards."""
    reference = Reference(Pixels(Size(96, 64), 3, bytes(3 * 96 * 64)), b"digest")
    request = replace(REQUEST, references=(reference, reference))
    assert pickle.loads(pickle.dumps(request)) == request
    assert request.reference_sizes == (Size(96, 64), Size(96, 64))


def test_a_cut_out_is_a_transparent_request() -> None:
    """Its background says so and nothing else."""
    output = Output(background=Background.TRANSPARENT)
    assert not REQUEST.is_transparent
    assert replace(REQUEST, options=replace(REQUEST.options, output=output)).is_transparent
