"""What is refused of a message by a model that is not mini."""

import pytest
from google.protobuf.message import Message
from klein.v1 import image_pb2
from kleinserve.config import Config
from kleinserve.core import ModelFacts, Size, Variant
from kleinserve.errors import InvalidField
from kleinserve.rpc import requests

KLEIN = ModelFacts("klein", Variant.DISTILLED, Size(1024, 1024), 4, 1.0, 512, 128, False, "cuda", "bfloat16")
LATENT = image_pb2.PreviewOptions(format="PREVIEW_FORMAT_LATENT")


TOO_LARGE = image_pb2.ImageOptions(width=2048, height=2048, steps=99, preview=LATENT)
NEVER_DECODED = image_pb2.Reference(image=b"no image")


@pytest.mark.parametrize(
    "message",
    [
        image_pb2.GenerateRequest(prompt="x", options=TOO_LARGE),
        image_pb2.EditRequest(prompt="x", options=TOO_LARGE, references=[NEVER_DECODED]),
    ],
)
def test_latent_previews_that_are_too_large(message: Message) -> None:
    """Previews of 4 MB are refused with every field that makes them so large, and with all other violations."""
    with pytest.raises(InvalidField) as caught:
        requests.draft(message, KLEIN, Config())
    fields = [violation.field for violation in caught.value.violations]
    assert fields == [f"options.{name}" for name in ("steps", "width", "height", "preview.format")]
    assert "2048x2048 are 4194304 bytes; at most 1048576" in str(caught.value)


def test_latent_previews_of_one_megapixel() -> None:
    """Those of 1024², a megabyte each, are taken."""
    options = image_pb2.ImageOptions(width=1024, height=1024, preview=LATENT)
    requests.draft(image_pb2.GenerateRequest(prompt="x", options=options), KLEIN, Config())
