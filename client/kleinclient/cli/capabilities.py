"""`klein capabilities`: what a server can do, for people and for programs."""

import json
from argparse import Namespace
from dataclasses import asdict

from kleinclient.capabilities import Capabilities
from kleinclient.client import Client
from kleinclient.usage import dollars

MIB = 1024 * 1024


def show_capabilities(klein: Client, arguments: Namespace) -> None:
    """What the server can do, one subject a line."""
    capabilities = klein.capabilities()
    if arguments.json:
        print(json.dumps(asdict(capabilities), indent=2))
        return
    for subject, words in described(capabilities):
        print(f"{subject:<13}{words}")


def described(can: Capabilities) -> list[tuple[str, str]]:
    """Subject and sentence for each thing worth knowing."""
    distilled = "distilled" if can.is_distilled else "not distilled"
    price = can.price
    return [
        (
            "model",
            f"{can.model} ({can.variant}, {distilled}), {can.dtype} on {can.device}, server {can.server_version}",
        ),
        ("default", f"{can.default_size}, {can.default_steps} steps, guidance {can.default_guidance_scale:g}"),
        (
            "size",
            f"edges {can.min_edge} to {can.max_edge}, multiples of {can.edge_multiple},"
            f" up to {can.max_pixels:,} pixels",
        ),
        ("steps", f"up to {can.max_steps}"),
        ("guidance", f"up to {can.max_guidance_scale:g}"),
        (
            "references",
            f"up to {can.max_references}, each up to {can.max_reference_bytes / MIB:g} MiB"
            f" and {can.max_reference_pixels:,} pixels, {can.max_request_bytes / MIB:g} MiB in all",
        ),
        ("prompt", f"up to {can.max_prompt_tokens} tokens"),
        ("images", " ".join(can.image_formats)),
        ("previews", " ".join(can.preview_formats)),
        ("alpha", " ".join(can.alpha_methods)),
        (
            "price",
            f"{dollars(price.first_output_megapixel_microusd)} for the first megapixel,"
            f" {dollars(price.further_output_megapixel_microusd)} for each further one,"
            f" {dollars(price.reference_megapixel_microusd)} for one of a reference ({price.version})",
        ),
    ]
