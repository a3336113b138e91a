"""The four commands. They print on standard output what was asked for, and raise what the library raises."""

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kleinclient.capabilities import Capabilities
from kleinclient.cli.arguments import FORMATS
from kleinclient.cli.screen import Screen
from kleinclient.client import Client
from kleinclient.events import Preview
from kleinclient.stream import ImageStream
from kleinclient.usage import UsageRecord, UsageTotal, dollars

MIB = 1024 * 1024
SUFFIXES = {"jpeg": ".jpg"}  # of previews; every other format is its own suffix


def run(arguments: Namespace) -> None:
    """Do what the arguments say. Raises: KleinError, OSError, ValueError."""
    with Client(arguments.server) as klein:
        match arguments.command:
            case "capabilities":
                show_capabilities(klein, arguments)
            case "usage":
                show_usage(klein, arguments)
            case _:
                make_image(klein, arguments)


def make_image(klein: Client, arguments: Namespace) -> None:
    """Generate or edit, showing how it goes; write the image, and say in one line what it took."""
    if arguments.preview_dir:
        arguments.preview_dir.mkdir(parents=True, exist_ok=True)
    with ask(klein, arguments) as stream, Screen(arguments.server, quiet=arguments.quiet) as screen:
        for event in stream:
            screen.show(event)
            if isinstance(event, Preview) and arguments.preview_dir:
                event.save(preview_path(arguments.preview_dir, event))
        image = stream.result()
    image.save(arguments.output)
    screen.show_result(image)
    if stream.accepted and stream.accepted.prompt_truncated:
        read = stream.accepted.prompt_tokens
        print(f"klein: the prompt is too long; the model read its first {read} tokens", file=sys.stderr)
    print(arguments.output, image)


def ask(klein: Client, arguments: Namespace) -> ImageStream:
    """The request under way."""
    options: dict[str, Any] = {
        "size": arguments.size,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "guidance_scale": arguments.guidance,
        "format": FORMATS[arguments.output.suffix.lower()],
        "quality": arguments.quality,
        "background": "transparent" if arguments.transparent else None,
        "embed_prompt": arguments.embed_prompt or None,
        "previews": not arguments.no_preview,
        "preview_max_edge": arguments.preview_edge,
        "priority": arguments.priority,
        "timeout": arguments.timeout,
    }
    if arguments.command == "edit":
        return klein.edit(arguments.prompt, arguments.references, **options)
    return klein.generate(arguments.prompt, **options)


def preview_path(folder: Path, preview: Preview) -> Path:
    return folder / f"step-{preview.step}{SUFFIXES.get(preview.format, '.' + preview.format)}"


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


def show_usage(klein: Client, arguments: Namespace) -> None:
    """Totals by caller and operation, or every record."""
    end = arguments.end or datetime.now(UTC)
    rows: list[UsageTotal] | list[UsageRecord]
    if arguments.records:
        rows = list(klein.usage_records(arguments.start, end, caller=arguments.caller))
    else:
        rows = list(klein.usage(arguments.start, end, caller=arguments.caller))
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=2, default=str))
        return
    print(f"{arguments.start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}")
    print_rows([cells(row) for row in rows])


def cells(row: UsageTotal | UsageRecord) -> dict[str, str]:
    """Heading and text of each column."""
    if isinstance(row, UsageTotal):
        return {
            "caller": row.caller,
            "operation": row.operation,
            "requests": str(row.requests),
            "images": str(row.images),
            "MP": str(row.output_megapixels),
            "reference MP": str(row.reference_megapixels),
            "cost": dollars(row.cost_microusd),
        }
    return {
        "ended": f"{row.end_time:%Y-%m-%d %H:%M:%S}",
        "request": row.request_id,
        "caller": row.caller,
        "operation": row.operation,
        "outcome": f"{row.outcome} {row.reason}".strip(),
        "size": f"{row.width}x{row.height}",
        "steps": str(row.steps_run),
        "cost": dollars(row.usage.cost_microusd),
    }


def print_rows(rows: list[dict[str, str]]) -> None:
    """A table as wide as its content; a pipe gets the whole width."""
    if not rows:
        print("nothing")
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.print(table, width=None if console.is_terminal else 10_000)
