"""`klein generate`, `edit` and `attach`: one image, shown while it is made, written when it is whole."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from kleinclient.cli.arguments import FORMATS
from kleinclient.cli.lines import Lines
from kleinclient.cli.screen import Screen
from kleinclient.client import Client
from kleinclient.errors import KleinError, ServerUnreachable
from kleinclient.events import Image, Preview
from kleinclient.files import Destination
from kleinclient.request import random_key
from kleinclient.stream import ImageStream

SUFFIXES = {"jpeg": ".jpg"}  # of previews; every other format is its own suffix


def make_image(klein: Client, arguments: Namespace) -> None:
    """Make or fetch the image, showing how it goes; write it, and say in one line what it took.

    Whether its file can be written is known before anything is sent.
    """
    if arguments.preview_dir:
        arguments.preview_dir.mkdir(parents=True, exist_ok=True)
    is_detached = arguments.command != "attach" and arguments.detach
    if is_detached and arguments.key is None:
        arguments.key = random_key()
    with Destination(arguments.output) as destination:
        try:
            follow(klein, arguments, destination)
        except (KleinError, KeyboardInterrupt) as error:
            if is_detached and may_go_on(error):
                print(f"klein: the request may go on; klein attach {arguments.key}", file=sys.stderr)
            raise


def follow(klein: Client, arguments: Namespace, destination: Destination) -> None:
    """Show all that comes, write the previews, and at last the image."""
    with ask(klein, arguments) as stream:
        with Lines(stream) if arguments.json else Screen(arguments.server, quiet=arguments.quiet) as view:
            for event in stream:
                path = None
                if isinstance(event, Preview) and arguments.preview_dir:
                    path = event.save(preview_path(arguments.preview_dir, event))
                view.show(event, path)
        image = stream.result()
    destination.write(image.data)
    view.show_result(image, arguments.output)
    warn(stream, image, arguments.output)


def may_go_on(error: KleinError | KeyboardInterrupt) -> bool:
    """Whether the server may be at work on a request that ended here; one that it ended itself has a reason."""
    return isinstance(error, KeyboardInterrupt) or not (error.reason or isinstance(error, ServerUnreachable))


def ask(klein: Client, arguments: Namespace) -> ImageStream:
    """The request under way."""
    if arguments.command == "attach":
        return klein.attach(arguments.key, timeout=arguments.timeout)
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
        "idempotency_key": arguments.key,
        "detach": arguments.detach,
        "timeout": arguments.timeout,
    }
    if arguments.command == "edit":
        return klein.edit(arguments.prompt, arguments.references, **options)
    return klein.generate(arguments.prompt, **options)


def preview_path(folder: Path, preview: Preview) -> Path:
    return folder / f"step-{preview.step}{SUFFIXES.get(preview.format, '.' + preview.format)}"


def warn(stream: ImageStream, image: Image, path: Path) -> None:
    """What the person may not expect of the image."""
    if stream.accepted and stream.accepted.prompt_truncated:
        read = stream.accepted.prompt_tokens
        print(f"klein: the prompt is too long; the model read its first {read} tokens", file=sys.stderr)
    if image.format != FORMATS[path.suffix.lower()]:
        print(f"klein: {path} holds {image.mime_type or image.format}, as it was asked for", file=sys.stderr)
