"""What may be written after `klein`. Only what argparse can judge alone is judged here; the server judges the rest."""

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from kleinclient.target import DEFAULT_TARGET

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
# What shells complete with file names, in shtab's words.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}

EPILOG = """\
exit codes:
  0    done
  1    refused or failed; sent again as it is, it will not do better
  2    the command line is wrong; nothing was sent
  3    not now: no server answers, it has no room, or it is going down; try later
  4    the time of --timeout is over
  5    not allowed: the server does not know the caller, or does not let it
  130  interrupted by Ctrl-C (143: by SIGTERM)

environment:
  KLEIN_SERVER  the default of --server
  KLEIN_TOKEN   the caller's token, where there is no --token-file
  KLEIN_TLS_CA  the default of --tls-ca
"""


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, where argparse would print all that could be written."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> Parser:
    """The whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    whole = Parser(
        prog="klein", description="Make and edit images with a klein server.", epilog=EPILOG, formatter_class=raw
    )
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    server, image, result = _server_options(), _image_options(), _result_options()

    def add(name: str, words: str, *parents: Parser) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=parents, help=words, epilog=EPILOG, formatter_class=raw)

    generate = add("generate", "make an image from a prompt", server, image, result)
    generate.add_argument("prompt", metavar="PROMPT")
    edit = add("edit", "make an image from a prompt and 1 to 4 images", server, image, result)
    edit.add_argument("prompt", metavar="PROMPT")
    _add_references(edit)
    attach = add("attach", "take a request up again that runs or is kept, by its key", server, result)
    attach.add_argument("key", metavar="KEY")
    cancel = add("cancel", "end a request, or forget its image, by its key", server)
    cancel.add_argument("key", metavar="KEY")
    capabilities = add("capabilities", "show what the server can do", server)
    capabilities.add_argument("--json", action="store_true", help="print it for programs")
    _add_usage_options(add("usage", "show what was used and what it cost", server))
    completion = add("completion", "print what lets a shell complete this command")
    completion.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return whole


def _server_options() -> Parser:
    options = Parser(add_help=False)
    group = options.add_argument_group("server")
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=os.environ.get("KLEIN_SERVER") or DEFAULT_TARGET,
        help="the klein server (default: KLEIN_SERVER, or %(default)s); also dns:///HOST:PORT, unix:PATH",
    )
    _add_file(group, "--token-file", "holds the caller's token (default: the token itself in KLEIN_TOKEN)")
    group.add_argument("--tls", action="store_true", help="encrypt, and trust the well-known authorities")
    _add_file(group, "--tls-ca", "encrypt, and trust these authorities (PEM; default: KLEIN_TLS_CA)")
    _add_file(group, "--tls-certificate", "the caller's own certificate (PEM), with --tls-key")
    _add_file(group, "--tls-key", "its key (PEM)")
    group.add_argument(
        "--plaintext-token", action="store_true", help="send the token unencrypted to other machines (a service mesh)"
    )
    return options


def _add_file(group: Any, name: str, words: str) -> None:
    group.add_argument(name, type=_file, metavar="FILE", help=words).complete = FILES


def _image_options() -> Parser:
    options = Parser(add_help=False)
    add = options.add_argument
    add("--size", metavar="WxH", help="pixels, multiples of 16 (default: the model's, or the first reference's)")
    add("--seed", type=int, metavar="N", help="the same request with the same seed makes the same image")
    add("--steps", type=int, metavar="N", help="denoising steps (default: the model's)")
    add("--guidance", type=float, metavar="X", help="guidance scale; distilled models have but one")
    add("--transparent", action="store_true", help="cut out the background")
    add("--quality", type=int, metavar="1..100", help="for .jpg (default 90) and .webp (default lossless)")
    add("--embed-prompt", action="store_true", help="write the prompt into the file's provenance")
    add("--preview-edge", type=int, metavar="N", help="longer edge of previews in pixels (default: an eighth)")
    add("--no-preview", action="store_true", help="ask for no previews")
    add("--priority", choices=["interactive", "standard", "batch"])
    add("--key", metavar="KEY", help="one key is one image and one bill (default: a random key; '': none)")
    add("--detach", action="store_true", help="let it go on when this command ends; klein attach KEY fetches it")
    return options


def _result_options() -> Parser:
    options = Parser(add_help=False)
    add = options.add_argument
    output: Any = add("-o", "--output", type=_output, default=Path("out.png"), metavar="FILE", help="default: out.png")
    folder: Any = add("--preview-dir", type=Path, metavar="DIR", help="write every preview: step-1.jpg, step-2.jpg, …")
    output.complete = folder.complete = FILES
    add("--timeout", type=float, metavar="SECONDS", help="give up after this long, waiting included")
    add("-q", "--quiet", action="store_true", help="no progress and no pictures, only the last line")
    add("--json", action="store_true", help="print every event as a line of JSON, for programs")
    return options


def _add_references(edit: argparse.ArgumentParser) -> None:
    references: Any = edit.add_argument(
        "-r",
        "--reference",
        dest="references",
        action="append",
        required=True,
        type=_file,
        metavar="FILE",
        help="PNG, JPEG or WebP; the n-th is “image n” of the prompt; may be given up to 4 times",
    )
    references.complete = FILES


def _add_usage_options(usage: argparse.ArgumentParser) -> None:
    month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    add = usage.add_argument
    add("what", nargs="?", choices=["totals", "records"], default="totals", help="totals (default) or every request")
    add("--from", dest="start", type=_moment, default=month, metavar="TIME", help="default: the first of this month")
    add("--to", dest="end", type=_moment, metavar="TIME", help="default: now; not included")
    add("--caller", default="", help="one caller's alone")
    add("--after", default="", metavar="RECORD_ID", help="go on after this record")
    add("--format", choices=["table", "csv", "json"], default="table", help="json: one object a line (default: table)")


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: the format follows the name, which must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}")
    return path


def _file(text: str) -> Path:
    if not Path(text).exists() or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no such file")
    return Path(text)


def _moment(text: str) -> datetime:
    """An ISO date or time; without a zone it is UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: not a date or time such as 2026-11-30 or 2026-11-30T12:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
