"""What this server and model take and give. Constant while the server runs."""

from klein.v1 import image_pb2

from kleinserve import __version__
from kleinserve.config import Config
from kleinserve.core import EDGE_MULTIPLE, ImageFormat, ModelFacts
from kleinserve.core.limits import EDGE_MAX, EDGE_MIN, GUIDANCE_MAX, PIXELS_MAX, REFERENCES_MAX
from kleinserve.rpc import requests


def response(facts: ModelFacts, config: Config) -> image_pb2.GetCapabilitiesResponse:
    """What this server and model take and give."""
    return image_pb2.GetCapabilitiesResponse(
        model=facts.name,
        variant=facts.variant.value,
        is_distilled=facts.variant.value == "distilled",
        default_width=facts.default_size.width,
        default_height=facts.default_size.height,
        default_steps=facts.default_steps,
        default_guidance_scale=facts.default_guidance_scale,
        max_guidance_scale=1.0 if facts.variant.value == "distilled" else GUIDANCE_MAX,
        max_steps=config.max_steps,
        min_edge=EDGE_MIN,
        max_edge=EDGE_MAX,
        edge_multiple=EDGE_MULTIPLE,
        max_pixels=PIXELS_MAX,
        max_references=REFERENCES_MAX,
        max_reference_bytes=config.reference_bytes_max,
        max_reference_pixels=config.reference_pixels_max,
        max_prompt_tokens=facts.prompt_tokens_max,
        image_formats=[f"IMAGE_FORMAT_{f.name}" for f in ImageFormat],
        preview_formats=requests.formats(config),
        alpha_methods=[f"ALPHA_METHOD_{m.name}" for m in facts.alpha_methods],
        chunk_bytes=config.chunk_bytes,
        price=image_pb2.Price(
            first_output_megapixel_microusd=config.price_first_output_megapixel_microusd,
            further_output_megapixel_microusd=config.price_further_output_megapixel_microusd,
            reference_megapixel_microusd=config.price_reference_megapixel_microusd,
            version=config.price_version,
        ),
        device=facts.device,
        dtype=facts.dtype,
        server_version=__version__,
        max_request_bytes=config.request_bytes_max,
    )
