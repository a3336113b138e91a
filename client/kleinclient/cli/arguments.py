"""What may be written after `klein`. Only what argparse can judge alone is judged here; the server judges the rest."""

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from kleinclient.target import DEFAULT_TARGET

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, where argparse would print all that could be written."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    """The whole command line; every subcommand takes --server."""
    whole = Parser(prog="klein", description="Make and edit images with a klein server.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    server = Parser(add_help=False)
    server.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get("KLEIN_SERVER") or DEFAULT_TARGET,
        help="the klein server (default: KLEIN_SERVER, or %(default)s)",
    )
    image = _image_options()
    generate = commands.add_parser("generate", parents=[server, image], help="make an image from a prompt")
    generate.add_argument("prompt", metavar="PROMPT")
    edit = commands.add_parser("edit", parents=[server, image], help="make an image from a prompt and 1 to 4 images")
    edit.add_argument("prompt", metavar="PROMPT")
    edit.add_argument(
        "-r",
        "--reference",
        dest="references",
        action="append",
        required=True,
        type=_file,
        metavar="FILE",
        help="PNG, JPEG or WebP; the n-th is “image n” of the prompt; may be given up to 4 times",
    )
    capabilities = commands.add_parser("capabilities", parents=[server], help="show what the server can do")
    capabilities.add_argument("--json", action="store_true", help="print it for programs")
    _add_usage_options(commands.add_parser("usage", parents=[server], help="show what was used and what it cost"))
    return whole


def _image_options() -> Parser:
    options = Parser(add_help=False)
    add = options.add_argument
    add("-o", "--output", type=_output, default=Path("out.png"), metavar="FILE", help="default: out.png")
    add("--size", metavar="WxH", help="pixels, multiples of 16 (default: the model's, or the first reference's)")
    add("--seed", type=int, metavar="N", help="the same request with the same seed makes the same image")
    add("--steps", type=int, metavar="N", help="denoising steps (default: the model's)")
    add("--guidance", type=float, metavar="X", help="guidance scale; distilled models have but one")
    add("--transparent", action="store_true", help="cut out the background")
    add("--quality", type=int, metavar="1..100", help="for .jpg (default 90) and .webp (default lossless)")
    add("--embed-prompt", action="store_true", help="write the prompt into the file's provenance")
    add("--preview-dir", type=Path, metavar="DIR", help="write every preview there: step-1.jpg, step-2.jpg, …")
    add("--preview-edge", type=int, metavar="N", help="longer edge of previews in pixels (default: an eighth)")
    add("--no-preview", action="store_true", help="ask for no previews")
    add("--priority", choices=["interactive", "standard", "batch"])
    add("--timeout", type=float, metavar="SECONDS", help="give up after this long, waiting included")
    add("-q", "--quiet", action="store_true", help="no progress and no pictures, only the last line")
    return options


def _add_usage_options(usage: argparse.ArgumentParser) -> None:
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    usage.add_argument("--start", type=_moment, default=month, metavar="TIME", help="default: the first of this month")
    usage.add_argument("--end", type=_moment, metavar="TIME", help="default: now")
    usage.add_argument("--caller", default="", help="one caller's alone")
    usage.add_argument("--records", action="store_true", help="every request, not totals")
    usage.add_argument("--json", action="store_true", help="print it for programs")


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: the format follows the name, which must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    return path


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file")
    return Path(text)


def _moment(text: str) -> datetime:
    """An ISO date or time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: not a date or time such as 2026-11-30 or 2026-11-30T12:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
