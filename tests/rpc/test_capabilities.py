"""What the capabilities say is what the server does."""

from dataclasses import replace

import pytest
from klein.v1 import image_pb2
from kleinserve import __version__
from kleinserve.config import load
from kleinserve.core import ModelFacts, Variant
from kleinserve.errors import InvalidField
from kleinserve.rpc import capabilities, requests

from tests.scheduler.scripted import FACTS

BASE = replace(FACTS, variant=Variant.BASE, default_steps=50, default_guidance_scale=4.0)


def drafted(facts: ModelFacts, **options: object) -> None:
    message = image_pb2.GenerateRequest(prompt="x", options=image_pb2.ImageOptions(**options))
    requests.draft(message, facts, load({}))


def test_latent_previews_can_be_switched_off() -> None:
    """Then they are not among the formats, and a request for them names the field and the formats that there are."""
    config = load({"latent_previews": False})
    assert image_pb2.PREVIEW_FORMAT_LATENT in capabilities.response(FACTS, load({})).preview_formats
    formats = [image_pb2.PreviewFormat.Name(f) for f in capabilities.response(FACTS, config).preview_formats]
    assert formats == ["PREVIEW_FORMAT_JPEG", "PREVIEW_FORMAT_PNG", "PREVIEW_FORMAT_WEBP"]
    preview = image_pb2.PreviewOptions(format="PREVIEW_FORMAT_LATENT")
    message = image_pb2.GenerateRequest(prompt="x", options=image_pb2.ImageOptions(preview=preview))
    with pytest.raises(InvalidField, match=", ".join(formats)) as caught:
        requests.draft(message, FACTS, config)
    assert [violation.field for violation in caught.value.violations] == ["options.preview.format"]


@pytest.mark.parametrize("facts", [FACTS, BASE], ids=["distilled", "base"])
def test_what_is_said_is_taken_and_one_more_is_not(facts: ModelFacts) -> None:
    """Each limit is the largest value that a request may have."""
    said = capabilities.response(facts, load({}))
    widest = said.max_pixels // said.max_edge
    for width, height in ((said.min_edge, said.min_edge), (said.max_edge, widest)):
        drafted(facts, width=width, height=height)
    drafted(facts, steps=said.max_steps, guidance_scale=said.max_guidance_scale)
    beyond: list[dict[str, object]] = [
        {"width": said.min_edge - said.edge_multiple, "height": said.min_edge},
        {"width": said.max_edge + said.edge_multiple, "height": said.min_edge},
        {"width": said.max_edge, "height": widest + said.edge_multiple},
        {"width": said.min_edge + 1, "height": said.min_edge},
        {"steps": said.max_steps + 1},
        {"guidance_scale": said.max_guidance_scale + 0.5},
    ]
    for options in beyond:
        with pytest.raises(InvalidField):
            drafted(facts, **options)


@pytest.mark.parametrize("facts", [FACTS, BASE], ids=["distilled", "base"])
def test_the_model_speaks_for_itself(facts: ModelFacts) -> None:
    """Name, variant, defaults and where it runs are the checkpoint's."""
    said = capabilities.response(facts, load({}))
    assert (said.model, said.variant, said.device, said.dtype) == ("scripted", facts.variant.value, "cuda", "bfloat16")
    assert (said.default_width, said.default_height) == (1024, 1024)
    assert (said.default_steps, said.default_guidance_scale) == (facts.default_steps, facts.default_guidance_scale)
    assert said.is_distilled == (facts is FACTS)
    assert (said.max_prompt_tokens, said.server_version) == (512, __version__)


def test_settings_show() -> None:
    """Limits and prices are those that the operator set."""
    settings = {
        "max_steps": 9,
        "chunk_bytes": 2048,
        "reference_bytes_max": 1000,
        "reference_pixels_max": 2000,
        "request_bytes_max": 3000,
        "price_first_output_megapixel_microusd": 5,
        "price_further_output_megapixel_microusd": 6,
        "price_reference_megapixel_microusd": 7,
        "price_version": "gift",
    }
    said = capabilities.response(FACTS, load(settings))
    assert (said.max_steps, said.chunk_bytes, said.max_reference_bytes) == (9, 2048, 1000)
    assert (said.max_reference_pixels, said.max_request_bytes, said.max_references) == (2000, 3000, 4)
    price = said.price
    assert (price.first_output_megapixel_microusd, price.further_output_megapixel_microusd) == (5, 6)
    assert (price.reference_megapixel_microusd, price.version) == (7, "gift")


def test_formats_and_methods_are_all_that_can_be_asked_for() -> None:
    """Every format of the contract but the zero; of the methods of cutting out, those of this model."""
    said = capabilities.response(FACTS, load({}))
    assert set(said.image_formats) == set(image_pb2.ImageFormat.values()) - {0}
    assert set(said.preview_formats) == set(image_pb2.PreviewFormat.values()) - {0}
    names = [image_pb2.AlphaMethod.Name(number) for number in said.alpha_methods]
    assert names == ["ALPHA_METHOD_OPAQUE", "ALPHA_METHOD_DIFFERENCE", "ALPHA_METHOD_KEY"]
