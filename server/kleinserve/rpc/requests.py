"""Messages to drafts of requests, every violation at once. Knows no scheduler, no I/O."""

import math
import secrets
import unicodedata
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from klein.v1 import image_pb2

from kleinserve.config import Config
from kleinserve.core import (
    EDGE_MULTIPLE,
    Background,
    Draft,
    ImageFormat,
    ModelFacts,
    OnDisconnect,
    Operation,
    Options,
    Output,
    PreviewFormat,
    PreviewOptions,
    Priority,
    Size,
    Variant,
)
from kleinserve.core.draft import too_large_latents
from kleinserve.core.limits import (
    CLIENT_TAG_BYTES_MAX,
    EDGE_MAX,
    EDGE_MIN,
    GUIDANCE_MAX,
    KEY_CHARACTERS_MAX,
    PIXELS_MAX,
    PREVIEW_EDGE_MAX,
    PREVIEW_EDGE_MIN,
    PROMPT_BYTES_MAX,
    REFERENCES_MAX,
    SEED_BITS,
)
from kleinserve.errors import InvalidField, Violation, quoted

_UNKNOWN_BYTES_MAX = 4096  # of unknown fields that are named one by one

E = TypeVar("E", bound=Enum)


def draft(message: Message, facts: ModelFacts, config: Config) -> Draft:
    """A GenerateRequest or EditRequest as a draft. Raises: InvalidField with every violation."""
    assert isinstance(message, (image_pb2.GenerateRequest, image_pb2.EditRequest))
    prompt, options = message.prompt, message.options
    given = message.references if isinstance(message, image_pb2.EditRequest) else ()
    is_counted = isinstance(message, image_pb2.GenerateRequest) or 1 <= len(given) <= REFERENCES_MAX
    # Of references that are too many nothing but their number is looked at.
    violations = list(unknown(message) if is_counted else unknown(options, "options."))
    size = len(prompt.encode())
    if (blank := _is_blank(prompt)) or size > PROMPT_BYTES_MAX:
        said = "blank" if blank else f"{size} bytes"
        violations.append(Violation("prompt", f"{said}; 1 to {PROMPT_BYTES_MAX} bytes, not blank"))
    if not is_counted:
        violations.append(Violation("references", f"{len(given)} given; 1 to {REFERENCES_MAX}"))
    violations += [*_size(options), *_sampling(options, facts, config), *_identity(options)]
    violations += [*_output(options.output), *_preview(options, facts, config)]
    if violations:
        raise InvalidField(*violations)
    references = tuple(reference.image for reference in given)
    return Draft(
        operation=Operation.EDIT if references else Operation.GENERATE,
        prompt=prompt,
        references=references,
        size=Size(options.width, options.height) if options.width else None,
        options=_options(options, facts),
        is_seed_drawn=not options.HasField("seed"),
    )


def _options(options: image_pb2.ImageOptions, facts: ModelFacts) -> Options:
    output, preview = options.output, options.preview
    scale = options.guidance_scale if options.HasField("guidance_scale") else facts.default_guidance_scale
    return Options(
        seed=options.seed if options.HasField("seed") else secrets.randbits(SEED_BITS),
        steps=options.steps or facts.default_steps,
        guidance_scale=scale,
        output=Output(
            format=_enum(ImageFormat, output.format, image_pb2.ImageFormat.Name, ImageFormat.PNG),
            quality=output.quality,
            embed_prompt=output.embed_prompt,
            background=_enum(Background, output.background, image_pb2.Background.Name, Background.OPAQUE),
        ),
        preview=PreviewOptions(
            disabled=preview.disabled,
            every_n_steps=preview.every_n_steps or 1,
            max_edge=preview.max_edge,
            format=_enum(PreviewFormat, preview.format, image_pb2.PreviewFormat.Name, PreviewFormat.JPEG),
        ),
        priority=_enum(Priority, options.priority, image_pb2.Priority.Name, Priority.STANDARD),
        idempotency_key=options.idempotency_key,
        on_disconnect=_enum(OnDisconnect, options.on_disconnect, image_pb2.OnDisconnect.Name, OnDisconnect.CANCEL),
        client_tag=options.client_tag,
    )


def unknown(message: Message, path: str = "") -> Iterator[Violation]:
    """Every field and enum number of `message`, nested ones too, that the contract does not have.

    Where they are so many that to list them would hold up others, one violation says how many bytes they are.
    """
    items = list(_items(message, path))
    surplus = message.ByteSize() - sum(_wire_bytes_max(item) for _, _, item in items)
    if surplus > _UNKNOWN_BYTES_MAX:
        yield Violation(f"{path}#", f"{surplus} bytes of unknown fields; this server cannot honour them")
        return
    nested = ((f"{at}.", item) for at, _, item in items if isinstance(item, Message))
    for at, part in ((path, message), *nested):
        for field in UnknownFieldSet(part):  # type: ignore[attr-defined]  # its types lack __iter__
            yield Violation(f"{at}#{field.field_number}", "unknown field; this server cannot honour it")
    for at, descriptor, item in items:
        if descriptor.enum_type is not None and item not in descriptor.enum_type.values_by_number:
            allowed = ", ".join(v.name for v in descriptor.enum_type.values)
            yield Violation(at, f"{item} is not a value of {descriptor.enum_type.name}; one of {allowed}")


def _items(message: Message, path: str) -> Iterator[tuple[str, FieldDescriptor, Any]]:
    """Path, descriptor and value of each field that is set, nested ones too; of a repeated one, of each element.

    Once for each message: to read a field of bytes is to copy it.
    """
    for descriptor, value in message.ListFields():
        name = f"{path}{descriptor.name}"
        elements = (
            [(f"{name}[{i}]", item) for i, item in enumerate(value)] if descriptor.is_repeated else [(name, value)]
        )
        for at, item in elements:
            yield at, descriptor, item
            if isinstance(item, Message):
                yield from _items(item, f"{at}.")


def _wire_bytes_max(value: object) -> int:
    """At most what a field takes in a message, its tag and length included; of a message these alone."""
    return 16 + (len(value.encode()) if isinstance(value, str) else len(value) if isinstance(value, bytes) else 0)


def _is_blank(prompt: str) -> bool:
    """Whether nothing in it could be seen: white space, control and format characters alone."""
    return all(character.isspace() or unicodedata.category(character) in ("Cc", "Cf") for character in prompt)


def _size(options: image_pb2.ImageOptions) -> Iterator[Violation]:
    width, height = options.width, options.height
    if bool(width) != bool(height):
        text = f"width {width} and height {height}; set both, or neither for the default"
        yield Violation("options.width", text)
        yield Violation("options.height", text)
        return
    for field, edge in (("options.width", width), ("options.height", height)):
        if edge and not (EDGE_MIN <= edge <= EDGE_MAX and edge % EDGE_MULTIPLE == 0):
            yield Violation(field, f"{edge}; a multiple of {EDGE_MULTIPLE} from {EDGE_MIN} to {EDGE_MAX}")
    if width * height > PIXELS_MAX:
        text = f"{width} x {height} is {width * height} pixels; at most {PIXELS_MAX}"
        yield Violation("options.width", text)
        yield Violation("options.height", text)


def _sampling(options: image_pb2.ImageOptions, facts: ModelFacts, config: Config) -> Iterator[Violation]:
    if options.steps > config.max_steps:
        yield Violation("options.steps", f"{options.steps}; 1 to {config.max_steps}, or 0 for {facts.default_steps}")
    if not options.HasField("guidance_scale"):
        return
    scale = options.guidance_scale
    if facts.variant is Variant.DISTILLED and scale != 1.0:
        yield Violation("options.guidance_scale", f"{scale:g}; 1 for a distilled model, which has no guidance")
    elif not (math.isfinite(scale) and 1.0 <= scale <= GUIDANCE_MAX):
        yield Violation("options.guidance_scale", f"{scale:g}; 1 to {GUIDANCE_MAX:g}")


def _identity(options: image_pb2.ImageOptions) -> Iterator[Violation]:
    tag = len(options.client_tag.encode())
    if tag > CLIENT_TAG_BYTES_MAX:
        yield Violation(
            "options.client_tag", f"{quoted(options.client_tag)} is {tag} bytes; at most {CLIENT_TAG_BYTES_MAX}"
        )
    yield from _key(options.idempotency_key, "options.idempotency_key")
    if options.on_disconnect == image_pb2.ON_DISCONNECT_DETACH and not options.idempotency_key:
        text = "ON_DISCONNECT_DETACH without a key, so that nobody could fetch the image"
        yield Violation("options.on_disconnect", text)
        yield Violation("options.idempotency_key", text)


def _key(key: str, field: str) -> Iterator[Violation]:
    """A key that is given: 1 to 128 printable ASCII characters."""
    if len(key) > KEY_CHARACTERS_MAX or not (key.isascii() and key.isprintable()):
        said = f"{quoted(key)} of {len(key)} characters; 1 to {KEY_CHARACTERS_MAX} printable ASCII characters"
        yield Violation(field, said)


def key(message: image_pb2.AttachRequest | image_pb2.CancelRequest) -> str:
    """The key by which a job is attached to or cancelled. Raises: InvalidField."""
    violations = [*unknown(message), *_key(message.idempotency_key, "idempotency_key")]
    if not message.idempotency_key:
        violations.append(Violation("idempotency_key", "empty; the key of a job is required"))
    if violations:
        raise InvalidField(*violations)
    return message.idempotency_key


def nothing(message: Message) -> None:
    """A message that has no fields. Raises: InvalidField where it has some all the same."""
    if violations := tuple(unknown(message)):
        raise InvalidField(*violations)


def _output(output: image_pb2.OutputOptions) -> Iterator[Violation]:
    textless = (image_pb2.IMAGE_FORMAT_JPEG, image_pb2.IMAGE_FORMAT_RAW_RGBA)
    lossless = (image_pb2.IMAGE_FORMAT_UNSPECIFIED, image_pb2.IMAGE_FORMAT_PNG, image_pb2.IMAGE_FORMAT_RAW_RGBA)
    if output.quality > 100:
        yield Violation("options.output.quality", f"{output.quality}; 1 to 100, or 0 for the default")
    elif output.quality and output.format in lossless:
        text = f"{output.quality} with a lossless format; only JPEG and WEBP take a quality"
        yield Violation("options.output.quality", text)
        yield Violation("options.output.format", text)
    if output.background == image_pb2.BACKGROUND_TRANSPARENT and output.format == image_pb2.IMAGE_FORMAT_JPEG:
        text = "BACKGROUND_TRANSPARENT with JPEG, which has no alpha; use PNG, WEBP or RAW_RGBA"
        yield Violation("options.output.background", text)
        yield Violation("options.output.format", text)
    if output.embed_prompt and output.format in textless:
        text = "a prompt can be embedded in PNG and WEBP only"
        yield Violation("options.output.embed_prompt", text)
        yield Violation("options.output.format", text)


def _preview(options: image_pb2.ImageOptions, facts: ModelFacts, config: Config) -> Iterator[Violation]:
    preview = options.preview
    if preview.disabled and (preview.every_n_steps or preview.max_edge or preview.format):
        yield Violation("options.preview.disabled", "true with other preview fields set; leave them out")
        for name in ("every_n_steps", "max_edge", "format"):
            if getattr(preview, name):
                yield Violation(f"options.preview.{name}", f"{getattr(preview, name)} with disabled; leave it out")
    if preview.max_edge and not PREVIEW_EDGE_MIN <= preview.max_edge <= PREVIEW_EDGE_MAX:
        yield Violation(
            "options.preview.max_edge",
            f"{preview.max_edge}; {PREVIEW_EDGE_MIN} to {PREVIEW_EDGE_MAX}, or 0 for the preview's own size",
        )
    if preview.format == image_pb2.PREVIEW_FORMAT_LATENT and not config.latent_previews:
        yield Violation("options.preview.format", f"LATENT is switched off here; one of {', '.join(formats(config))}")
    elif preview.format == image_pb2.PREVIEW_FORMAT_LATENT and not preview.disabled:
        yield from too_large_latents(Size(options.width, options.height), facts)
    if preview.format == image_pb2.PREVIEW_FORMAT_LATENT and preview.max_edge:
        text = f"max_edge {preview.max_edge} with LATENT, which is never scaled"
        yield Violation("options.preview.max_edge", text)
        yield Violation("options.preview.format", text)


def formats(config: Config) -> list[str]:
    """The preview formats that this server gives."""
    given = [f for f in PreviewFormat if config.latent_previews or f is not PreviewFormat.LATENT]
    return [f"PREVIEW_FORMAT_{f.name}" for f in given]


def _enum(kind: type[E], number: int, name: Callable[[int], str], default: E) -> E:
    """Our enum by the proto's name; the number is known to be one of the contract's."""
    wire = name(number)  # e.g. IMAGE_FORMAT_RAW_RGBA
    return next((value for value in kind if wire.endswith(f"_{value.name}")), default)
