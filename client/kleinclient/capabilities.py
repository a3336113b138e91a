"""What a server's model can do, what it takes and what it costs."""

from dataclasses import dataclass

from klein.v1 import image_pb2 as pb

from kleinclient.events import Size
from kleinclient.names import word


@dataclass(frozen=True)
class Price:
    """Millionths of a US dollar per started megapixel (1,048,576 pixels)."""

    first_output_megapixel_microusd: int
    further_output_megapixel_microusd: int
    reference_megapixel_microusd: int
    version: str


@dataclass(frozen=True)
class Capabilities:
    """Limits are inclusive; edges and pixels are of the output, reference limits are of one reference."""

    model: str
    variant: str
    is_distilled: bool
    default_size: Size
    default_steps: int
    default_guidance_scale: float
    max_guidance_scale: float
    max_steps: int
    min_edge: int
    max_edge: int
    edge_multiple: int
    max_pixels: int
    max_references: int
    max_reference_bytes: int
    max_reference_pixels: int
    max_request_bytes: int
    max_prompt_tokens: int
    image_formats: tuple[str, ...]
    preview_formats: tuple[str, ...]
    alpha_methods: tuple[str, ...]
    chunk_bytes: int
    price: Price
    device: str
    dtype: str
    server_version: str


def capabilities(message: pb.GetCapabilitiesResponse) -> Capabilities:
    """The answer as a value; formats and methods that this client does not know are left out."""
    return Capabilities(
        model=message.model,
        variant=message.variant,
        is_distilled=message.is_distilled,
        default_size=Size(message.default_width, message.default_height),
        default_steps=message.default_steps,
        default_guidance_scale=message.default_guidance_scale,
        max_guidance_scale=message.max_guidance_scale,
        max_steps=message.max_steps,
        min_edge=message.min_edge,
        max_edge=message.max_edge,
        edge_multiple=message.edge_multiple,
        max_pixels=message.max_pixels,
        max_references=message.max_references,
        max_reference_bytes=message.max_reference_bytes,
        max_reference_pixels=message.max_reference_pixels,
        max_request_bytes=message.max_request_bytes,
        max_prompt_tokens=message.max_prompt_tokens,
        image_formats=tuple(filter(None, (word(pb.ImageFormat, n) for n in message.image_formats))),
        preview_formats=tuple(filter(None, (word(pb.PreviewFormat, n) for n in message.preview_formats))),
        alpha_methods=tuple(filter(None, (word(pb.AlphaMethod, n) for n in message.alpha_methods))),
        chunk_bytes=message.chunk_bytes,
        price=Price(
            message.price.first_output_megapixel_microusd,
            message.price.further_output_megapixel_microusd,
            message.price.reference_megapixel_microusd,
            message.price.version,
        ),
        device=message.device,
        dtype=message.dtype,
        server_version=message.server_version,
    )
