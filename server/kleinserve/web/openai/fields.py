"""The fields of an images request, and the contract's messages of them. Honours a field or refuses it by its name."""

import json
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from klein.v1 import image_pb2
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from kleinserve.errors import InvalidField, KleinError, Violation, quoted

IMAGE = re.compile(r"image(\[\d*\])?$")
_FILES_MAX, _FIELDS_MAX = 64, 64
_TOGETHER_BYTES = 1 << 30  # of one part in memory: the body is bounded already
_NAMES = {  # the contract's fields by OpenAI's names
    "options.width": "size",
    "options.height": "size",
    "options.seed": "seed",
    "options.steps": "steps",
    "options.output.quality": "output_compression",
    "options.output.format": "output_format",
    "options.output.background": "background",
    "options.preview.format": "output_format",
    "options.idempotency_key": "Idempotency-Key",
    "options.client_tag": "user",
    "references": "image",
}


class ModelNotFound(KleinError):
    """Another model than the one that is served."""

    status, reason = "NOT_FOUND", "MODEL_NOT_FOUND"

    def __init__(self, asked: str | None, served: str):
        description = f"{quoted(asked)} is not served here; {served} is"
        super().__init__(description, violations=(Violation("model", description),))


def _size(given: object) -> object:
    """(width, height); auto is neither."""
    if not isinstance(given, str):
        raise ValueError("WIDTHxHEIGHT, as 1024x768, or auto")
    if given == "auto":
        return (0, 0)
    if not (match := re.fullmatch(r"(\d{1,9})x(\d{1,9})", given)):
        raise ValueError("WIDTHxHEIGHT, as 1024x768, or auto")
    return (int(match[1]), int(match[2]))


class Fields(BaseModel):
    """A request's fields; what is not here is refused. `user` is the contract's client_tag."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    model: str | None = None
    n: int = Field(1, ge=1, le=10)
    size: Annotated[tuple[int, int], BeforeValidator(_size)] = (0, 0)
    seed: int | None = Field(None, ge=0, lt=2**64)
    steps: int = Field(0, ge=0, lt=2**32)
    background: Literal["auto", "opaque", "transparent"] = "auto"
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_compression: int | None = Field(None, ge=1, le=100)
    quality: Literal["auto"] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    stream: bool = False
    partial_images: int = Field(0, ge=0, le=3)
    user: str = ""


class Asked:
    """A whole request: its fields, references and key.

    Raises: InvalidField, ModelNotFound.
    """

    def __init__(self, fields: Fields, references: tuple[bytes, ...] | None, key: str, model: str):
        self.fields, self._references, self._key = fields, references, key
        self.operation = "Generate" if references is None else "Edit"
        violations = []
        if fields.stream and fields.n > 1:
            violations.append(Violation("n", f"{fields.n} with stream; 1"))
        if fields.partial_images and not fields.stream:
            violations.append(Violation("partial_images", f"{fields.partial_images} without stream; 0"))
        if violations:
            raise InvalidField(*violations)
        if fields.model not in (None, model):
            raise ModelNotFound(fields.model, model)

    @property
    def is_keyed(self) -> bool:
        return bool(self._key)

    @property
    def background(self) -> str:
        return "transparent" if self.fields.background == "transparent" else "opaque"

    @property
    def again(self) -> str:
        """How images that are billed come again."""
        return f"the same request with Idempotency-Key {self._key} brings them again for nothing"

    def key(self, index: int) -> str:
        """The key of the index-th image, from 0: `KEY/1`, `KEY/2`, …; of a single one the key itself."""
        return self._key if self.fields.n == 1 or not self._key else f"{self._key}/{index + 1}"

    def message(self, index: int, seed: int | None) -> image_pb2.GenerateRequest | image_pb2.EditRequest:
        """The index-th image's request, from 0; `seed` None: the server draws one.

        The last one takes the references along.
        """
        fields = self.fields
        options = image_pb2.ImageOptions(
            width=fields.size[0],
            height=fields.size[1],
            seed=seed,
            steps=fields.steps,
            output=image_pb2.OutputOptions(
                format=f"IMAGE_FORMAT_{fields.output_format.upper()}",
                quality=fields.output_compression or 0,
                background=f"BACKGROUND_{self.background.upper()}",
            ),
            preview=image_pb2.PreviewOptions(disabled=True),
            idempotency_key=self.key(index),
            client_tag=fields.user,
        )
        if fields.partial_images:
            options.preview.CopyFrom(image_pb2.PreviewOptions(format=f"PREVIEW_FORMAT_{fields.output_format.upper()}"))
        if self._references is None:
            return image_pb2.GenerateRequest(prompt=fields.prompt, options=options)
        references = [image_pb2.Reference(image=data) for data in self._references]
        if index == fields.n - 1:
            self._references = ()
        return image_pb2.EditRequest(prompt=fields.prompt, references=references, options=options)


async def generation(body: bytes, headers: Headers, model: str) -> Asked:
    """A body of JSON. Raises: InvalidField, ModelNotFound."""
    _check_kind(headers, "application/json")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InvalidField(Violation("body", "no JSON object"))
    return Asked(_fields(given), None, headers.get("idempotency-key", ""), model)


async def edit(body: bytes, headers: Headers, model: str) -> Asked:
    """A body of parts, with one image or several. Raises: InvalidField, ModelNotFound."""
    _check_kind(headers, "multipart/form-data")

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, whole(), max_files=_FILES_MAX, max_fields=_FIELDS_MAX)
    parser.spool_max_size = _TOGETHER_BYTES
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidField(Violation("body", f"no multipart/form-data that can be read: {error}")) from None
    parts = form.multi_items()
    images = [await part.read() for name, part in parts if IMAGE.match(name) and isinstance(part, UploadFile)]
    others = {name: part for name, part in parts if not (IMAGE.match(name) and isinstance(part, UploadFile))}
    await form.close()
    return Asked(_fields(others), tuple(images), headers.get("idempotency-key", ""), model)


def told(error: KleinError) -> tuple[str, str | None]:
    """The error's message and the first field that it names, with OpenAI's names for the contract's fields."""
    if not error.violations:
        return error.message, None
    said = {f"{_name(violation.field)}: {violation.description}": None for violation in error.violations}
    return "; ".join(said), _name(error.violations[0].field)


def _name(field: str) -> str:
    return _NAMES.get(field) or re.sub(r"^references\[(\d+)\]\.image$", r"image[\1]", field)


def _check_kind(headers: Headers, kind: str) -> None:
    given = headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != kind:
        raise InvalidField(Violation("content-type", f"{quoted(given)}; {kind}"))


def _fields(given: dict[str, Any]) -> Fields:
    """A field that is null is not given."""
    try:
        return Fields(**{str(name): value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise InvalidField(*(_violation(problem) for problem in error.errors(include_url=False))) from None


def _violation(problem: Any) -> Violation:
    field = str(problem["loc"][0])[:64]
    if problem["type"] == "extra_forbidden":
        return Violation(field, "unknown field; this server cannot honour it")
    if problem["type"] == "missing":
        return Violation(field, "missing; it is required")
    said = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    return Violation(field, f"{quoted(problem['input'])}; {said[:1].lower()}{said[1:]}")
