"""What a caller asks for, as the messages of the wire. Values are judged by the server; here they only have to fit."""

import copy
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from klein.v1 import image_pb2 as pb

from kleinclient.events import Image
from kleinclient.names import number

Reference = bytes | str | PathLike[str] | Image
"""An image to edit: PNG, JPEG or WebP bytes, the path of such a file, or an image that was made before."""

ENDLESS_SECONDS = 1e9


class Options(TypedDict, total=False):
    """What a request may ask for beside its prompt; left out or None: the server's default."""

    size: tuple[int, int] | str | None
    """Pixels, (width, height) or "512x256"; an edit's default is the size of its first reference."""
    seed: int | None
    """The same request with the same seed makes the same image; without one the server draws it."""
    steps: int | None
    guidance_scale: float | None
    format: Literal["png", "webp", "jpeg", "raw_rgba"] | None
    quality: int | None
    """1 to 100, for "jpeg" (90) and "webp" (lossless)."""
    background: Literal["opaque", "transparent"] | None
    embed_prompt: bool | None
    """Whether the file may carry the prompt beside its provenance."""
    previews: bool | None
    """False: none. Otherwise one after every step, or as the next three say."""
    preview_every_n_steps: int | None
    preview_max_edge: int | None
    """Pixels; the default is an eighth of the image."""
    preview_format: Literal["jpeg", "png", "webp", "latent"] | None
    priority: Literal["interactive", "standard", "batch"] | None
    idempotency_key: str | None
    """Makes sending again safe: one key is one image and one bill. Default: a random key; "": none."""
    detach: bool | None
    """True: the request goes on where its reader leaves, and `attach` fetches its image. Otherwise it is cancelled."""
    client_tag: str | None
    timeout: float | None
    """Seconds for everything, waiting and sending again included; without it, or infinite, there is no deadline."""


@dataclass(frozen=True)
class Ask:
    """One call of ImageService that streams: which, with what, for how long, under which key ("": none).

    `may_drop_key`: the caller did not choose the key and does not need it.
    """

    rpc: Literal["Generate", "Edit", "Attach"]
    message: pb.GenerateRequest | pb.EditRequest | pb.AttachRequest
    timeout: float | None
    key: str
    may_drop_key: bool = False

    def without_key(self) -> "Ask":
        """The same for a server that takes no keys."""
        message = copy.deepcopy(self.message)
        if not isinstance(message, pb.AttachRequest):
            message.options.idempotency_key = ""
        return replace(self, message=message, key="", may_drop_key=False)


FIELDS: dict[str, tuple[str, EnumTypeWrapper | None]] = {
    "seed": ("seed", None),
    "steps": ("steps", None),
    "guidance_scale": ("guidance_scale", None),
    "format": ("output.format", cast(EnumTypeWrapper, pb.ImageFormat)),
    "quality": ("output.quality", None),
    "background": ("output.background", cast(EnumTypeWrapper, pb.Background)),
    "embed_prompt": ("output.embed_prompt", None),
    "preview_every_n_steps": ("preview.every_n_steps", None),
    "preview_max_edge": ("preview.max_edge", None),
    "preview_format": ("preview.format", cast(EnumTypeWrapper, pb.PreviewFormat)),
    "priority": ("priority", cast(EnumTypeWrapper, pb.Priority)),
    "client_tag": ("client_tag", None),
}


def generate(prompt: str, options: Options) -> Ask:
    """Raises: TypeError for an unknown option, ValueError for a value that does not fit the wire."""
    return _ask("Generate", pb.GenerateRequest(prompt=prompt, options=_image_options(options)), options)


def edit(prompt: str, references: Sequence[Reference], options: Options) -> Ask:
    """Raises: as `generate`; OSError for a reference that cannot be read."""
    if isinstance(references, str | bytes | PathLike | Image):
        raise TypeError("references: give a list, even for one image")
    images = [pb.Reference(image=_reference_bytes(reference)) for reference in references]
    return _ask("Edit", pb.EditRequest(prompt=prompt, references=images, options=_image_options(options)), options)


def attach(key: str, timeout: float | None) -> Ask:
    """Raises: ValueError."""
    return Ask("Attach", pb.AttachRequest(idempotency_key=checked_key(key)), _seconds(timeout), key)


def checked_key(key: str) -> str:
    """The key, if the wire carries it unchanged, in the metadata too. Raises: ValueError."""
    if not re.fullmatch(r"[!-~]([ -~]{0,126}[!-~])?", key):
        raise ValueError("idempotency_key: it is not 1 to 128 printable ASCII characters without space at the ends")
    return key


def random_key() -> str:
    """A key that nobody else has."""
    return secrets.token_urlsafe(16)


def _ask(rpc: Literal["Generate", "Edit"], message: pb.GenerateRequest | pb.EditRequest, options: Options) -> Ask:
    given, detach = options.get("idempotency_key"), bool(options.get("detach"))
    if given == "" and detach:
        raise ValueError("detach: without an idempotency key nobody could fetch the image")
    key = random_key() if given is None else given and checked_key(given)
    message.options.idempotency_key = key
    if detach:
        message.options.on_disconnect = pb.ON_DISCONNECT_DETACH
    timeout = _seconds(options.get("timeout"))
    return Ask(rpc, message, timeout, key, may_drop_key=given is None and not detach)


def _seconds(timeout: float | None) -> float | None:
    """The timeout as gRPC counts it; what no clock would see the end of is none. Raises: ValueError."""
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout: {timeout} is not a number of seconds above 0")
    return None if timeout is None or timeout > ENDLESS_SECONDS else timeout


def _image_options(options: Options) -> pb.ImageOptions:
    if unknown := options.keys() - Options.__annotations__.keys():
        raise TypeError(f"no such option: {', '.join(sorted(unknown))}")
    message = pb.ImageOptions()
    if (size := options.get("size")) is not None:
        message.width, message.height = _edges(size)
    if options.get("previews") is False:
        message.preview.disabled = True
    for name, value in cast(Mapping[str, Any], options).items():
        if name in FIELDS and value is not None:
            _set(message, name, value)
    return message


def _set(message: Any, name: str, value: Any) -> None:
    path, enum = FIELDS[name]
    *parents, leaf = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    try:
        setattr(message, leaf, value if enum is None else number(enum, value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def _edges(size: tuple[int, int] | str) -> tuple[int, int]:
    """Width and height of (512, 256) or "512x256"."""
    try:
        width, height = map(int, size.lower().split("x") if isinstance(size, str) else size)
    except (TypeError, ValueError):
        raise ValueError(f"size: {size!r} is not WIDTHxHEIGHT") from None
    if not (0 <= width < 2**32 and 0 <= height < 2**32):
        raise ValueError(f"size: {size!r} does not fit the wire")
    return width, height


def _reference_bytes(reference: Reference) -> bytes:
    if isinstance(reference, Image):
        return reference.data
    return reference if isinstance(reference, bytes) else Path(reference).read_bytes()
