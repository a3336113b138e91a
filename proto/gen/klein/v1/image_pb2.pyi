import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from klein.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_WEBP: _ClassVar[ImageFormat]
    IMAGE_FORMAT_JPEG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_RAW_RGBA: _ClassVar[ImageFormat]

class PreviewFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PREVIEW_FORMAT_UNSPECIFIED: _ClassVar[PreviewFormat]
    PREVIEW_FORMAT_JPEG: _ClassVar[PreviewFormat]
    PREVIEW_FORMAT_PNG: _ClassVar[PreviewFormat]
    PREVIEW_FORMAT_WEBP: _ClassVar[PreviewFormat]
    PREVIEW_FORMAT_LATENT: _ClassVar[PreviewFormat]

class Background(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKGROUND_UNSPECIFIED: _ClassVar[Background]
    BACKGROUND_OPAQUE: _ClassVar[Background]
    BACKGROUND_TRANSPARENT: _ClassVar[Background]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_STANDARD: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]

class OnDisconnect(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_DISCONNECT_UNSPECIFIED: _ClassVar[OnDisconnect]
    ON_DISCONNECT_CANCEL: _ClassVar[OnDisconnect]
    ON_DISCONNECT_DETACH: _ClassVar[OnDisconnect]

class AlphaMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALPHA_METHOD_UNSPECIFIED: _ClassVar[AlphaMethod]
    ALPHA_METHOD_OPAQUE: _ClassVar[AlphaMethod]
    ALPHA_METHOD_NATIVE: _ClassVar[AlphaMethod]
    ALPHA_METHOD_DIFFERENCE: _ClassVar[AlphaMethod]
    ALPHA_METHOD_KEY: _ClassVar[AlphaMethod]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_WEBP: ImageFormat
IMAGE_FORMAT_JPEG: ImageFormat
IMAGE_FORMAT_RAW_RGBA: ImageFormat
PREVIEW_FORMAT_UNSPECIFIED: PreviewFormat
PREVIEW_FORMAT_JPEG: PreviewFormat
PREVIEW_FORMAT_PNG: PreviewFormat
PREVIEW_FORMAT_WEBP: PreviewFormat
PREVIEW_FORMAT_LATENT: PreviewFormat
BACKGROUND_UNSPECIFIED: Background
BACKGROUND_OPAQUE: Background
BACKGROUND_TRANSPARENT: Background
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_STANDARD: Priority
PRIORITY_BATCH: Priority
ON_DISCONNECT_UNSPECIFIED: OnDisconnect
ON_DISCONNECT_CANCEL: OnDisconnect
ON_DISCONNECT_DETACH: OnDisconnect
ALPHA_METHOD_UNSPECIFIED: AlphaMethod
ALPHA_METHOD_OPAQUE: AlphaMethod
ALPHA_METHOD_NATIVE: AlphaMethod
ALPHA_METHOD_DIFFERENCE: AlphaMethod
ALPHA_METHOD_KEY: AlphaMethod

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "options")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    options: ImageOptions
    def __init__(self, prompt: _Optional[str] = ..., options: _Optional[_Union[ImageOptions, _Mapping]] = ...) -> None: ...

class EditRequest(_message.Message):
    __slots__ = ("prompt", "references", "options")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    references: _containers.RepeatedCompositeFieldContainer[Reference]
    options: ImageOptions
    def __init__(self, prompt: _Optional[str] = ..., references: _Optional[_Iterable[_Union[Reference, _Mapping]]] = ..., options: _Optional[_Union[ImageOptions, _Mapping]] = ...) -> None: ...

class Reference(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    def __init__(self, image: _Optional[bytes] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("idempotency_key",)
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    def __init__(self, idempotency_key: _Optional[str] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("idempotency_key",)
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    idempotency_key: str
    def __init__(self, idempotency_key: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ImageOptions(_message.Message):
    __slots__ = ("width", "height", "seed", "steps", "guidance_scale", "output", "preview", "priority", "idempotency_key", "on_disconnect", "client_tag")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    ON_DISCONNECT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TAG_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    seed: int
    steps: int
    guidance_scale: float
    output: OutputOptions
    preview: PreviewOptions
    priority: Priority
    idempotency_key: str
    on_disconnect: OnDisconnect
    client_tag: str
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ..., seed: _Optional[int] = ..., steps: _Optional[int] = ..., guidance_scale: _Optional[float] = ..., output: _Optional[_Union[OutputOptions, _Mapping]] = ..., preview: _Optional[_Union[PreviewOptions, _Mapping]] = ..., priority: _Optional[_Union[Priority, str]] = ..., idempotency_key: _Optional[str] = ..., on_disconnect: _Optional[_Union[OnDisconnect, str]] = ..., client_tag: _Optional[str] = ...) -> None: ...

class OutputOptions(_message.Message):
    __slots__ = ("format", "quality", "embed_prompt", "background")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    EMBED_PROMPT_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    quality: int
    embed_prompt: bool
    background: Background
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., quality: _Optional[int] = ..., embed_prompt: _Optional[bool] = ..., background: _Optional[_Union[Background, str]] = ...) -> None: ...

class PreviewOptions(_message.Message):
    __slots__ = ("disabled", "every_n_steps", "max_edge", "format")
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    EVERY_N_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_EDGE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    disabled: bool
    every_n_steps: int
    max_edge: int
    format: PreviewFormat
    def __init__(self, disabled: _Optional[bool] = ..., every_n_steps: _Optional[int] = ..., max_edge: _Optional[int] = ..., format: _Optional[_Union[PreviewFormat, str]] = ...) -> None: ...

class ImageEvent(_message.Message):
    __slots__ = ("request_id", "sequence", "client_tag", "accepted", "queued", "started", "preview", "image_header", "image_chunk", "completed", "progress")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TAG_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEADER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sequence: int
    client_tag: str
    accepted: Accepted
    queued: Queued
    started: Started
    preview: Preview
    image_header: ImageHeader
    image_chunk: ImageChunk
    completed: Completed
    progress: Progress
    def __init__(self, request_id: _Optional[str] = ..., sequence: _Optional[int] = ..., client_tag: _Optional[str] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., queued: _Optional[_Union[Queued, _Mapping]] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., preview: _Optional[_Union[Preview, _Mapping]] = ..., image_header: _Optional[_Union[ImageHeader, _Mapping]] = ..., image_chunk: _Optional[_Union[ImageChunk, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ...) -> None: ...

class Size(_message.Message):
    __slots__ = ("width", "height")
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    width: int
    height: int
    def __init__(self, width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("seed", "width", "height", "steps", "model", "reference_sizes", "prompt_tokens", "prompt_truncated", "estimated_wait", "estimated_duration", "estimated_usage", "guidance_scale", "is_replay")
    SEED_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SIZES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_DURATION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_USAGE_FIELD_NUMBER: _ClassVar[int]
    GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    IS_REPLAY_FIELD_NUMBER: _ClassVar[int]
    seed: int
    width: int
    height: int
    steps: int
    model: str
    reference_sizes: _containers.RepeatedCompositeFieldContainer[Size]
    prompt_tokens: int
    prompt_truncated: bool
    estimated_wait: _duration_pb2.Duration
    estimated_duration: _duration_pb2.Duration
    estimated_usage: _usage_pb2.Usage
    guidance_scale: float
    is_replay: bool
    def __init__(self, seed: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., steps: _Optional[int] = ..., model: _Optional[str] = ..., reference_sizes: _Optional[_Iterable[_Union[Size, _Mapping]]] = ..., prompt_tokens: _Optional[int] = ..., prompt_truncated: _Optional[bool] = ..., estimated_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., estimated_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., estimated_usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ..., guidance_scale: _Optional[float] = ..., is_replay: _Optional[bool] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("position", "estimated_wait")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_WAIT_FIELD_NUMBER: _ClassVar[int]
    position: int
    estimated_wait: _duration_pb2.Duration
    def __init__(self, position: _Optional[int] = ..., estimated_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("queue_wait",)
    QUEUE_WAIT_FIELD_NUMBER: _ClassVar[int]
    queue_wait: _duration_pb2.Duration
    def __init__(self, queue_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "total_steps", "estimated_remaining")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_REMAINING_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    estimated_remaining: _duration_pb2.Duration
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., estimated_remaining: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Preview(_message.Message):
    __slots__ = ("step", "total_steps", "format", "width", "height", "data", "skipped", "channels")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    format: PreviewFormat
    width: int
    height: int
    data: bytes
    skipped: int
    channels: int
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., format: _Optional[_Union[PreviewFormat, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., data: _Optional[bytes] = ..., skipped: _Optional[int] = ..., channels: _Optional[int] = ...) -> None: ...

class ImageHeader(_message.Message):
    __slots__ = ("format", "mime_type", "width", "height", "alpha_method", "size_bytes", "sha256")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    MIME_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ALPHA_METHOD_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    format: ImageFormat
    mime_type: str
    width: int
    height: int
    alpha_method: AlphaMethod
    size_bytes: int
    sha256: bytes
    def __init__(self, format: _Optional[_Union[ImageFormat, str]] = ..., mime_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., alpha_method: _Optional[_Union[AlphaMethod, str]] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class ImageChunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("usage", "timings", "max_step_requests", "previews_skipped")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    usage: _usage_pb2.Usage
    timings: Timings
    max_step_requests: int
    previews_skipped: int
    def __init__(self, usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., max_step_requests: _Optional[int] = ..., previews_skipped: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue", "text", "references", "denoise", "decode", "encode")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REFERENCES_FIELD_NUMBER: _ClassVar[int]
    DENOISE_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    text: _duration_pb2.Duration
    references: _duration_pb2.Duration
    denoise: _duration_pb2.Duration
    decode: _duration_pb2.Duration
    encode: _duration_pb2.Duration
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., text: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., references: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., denoise: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., decode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., encode: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetCapabilitiesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Price(_message.Message):
    __slots__ = ("first_output_megapixel_microusd", "further_output_megapixel_microusd", "reference_megapixel_microusd", "version")
    FIRST_OUTPUT_MEGAPIXEL_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    FURTHER_OUTPUT_MEGAPIXEL_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_MEGAPIXEL_MICROUSD_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    first_output_megapixel_microusd: int
    further_output_megapixel_microusd: int
    reference_megapixel_microusd: int
    version: str
    def __init__(self, first_output_megapixel_microusd: _Optional[int] = ..., further_output_megapixel_microusd: _Optional[int] = ..., reference_megapixel_microusd: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class GetCapabilitiesResponse(_message.Message):
    __slots__ = ("model", "variant", "is_distilled", "default_width", "default_height", "default_steps", "default_guidance_scale", "max_steps", "min_edge", "max_edge", "edge_multiple", "max_pixels", "max_references", "max_reference_bytes", "max_reference_pixels", "max_prompt_tokens", "image_formats", "preview_formats", "alpha_methods", "chunk_bytes", "price", "device", "dtype", "server_version", "max_request_bytes", "max_guidance_scale")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    IS_DISTILLED_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_STEPS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_EDGE_FIELD_NUMBER: _ClassVar[int]
    MAX_EDGE_FIELD_NUMBER: _ClassVar[int]
    EDGE_MULTIPLE_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_REFERENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_REFERENCE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REFERENCE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMATS_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_FORMATS_FIELD_NUMBER: _ClassVar[int]
    ALPHA_METHODS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_GUIDANCE_SCALE_FIELD_NUMBER: _ClassVar[int]
    model: str
    variant: str
    is_distilled: bool
    default_width: int
    default_height: int
    default_steps: int
    default_guidance_scale: float
    max_steps: int
    min_edge: int
    max_edge: int
    edge_multiple: int
    max_pixels: int
    max_references: int
    max_reference_bytes: int
    max_reference_pixels: int
    max_prompt_tokens: int
    image_formats: _containers.RepeatedScalarFieldContainer[ImageFormat]
    preview_formats: _containers.RepeatedScalarFieldContainer[PreviewFormat]
    alpha_methods: _containers.RepeatedScalarFieldContainer[AlphaMethod]
    chunk_bytes: int
    price: Price
    device: str
    dtype: str
    server_version: str
    max_request_bytes: int
    max_guidance_scale: float
    def __init__(self, model: _Optional[str] = ..., variant: _Optional[str] = ..., is_distilled: _Optional[bool] = ..., default_width: _Optional[int] = ..., default_height: _Optional[int] = ..., default_steps: _Optional[int] = ..., default_guidance_scale: _Optional[float] = ..., max_steps: _Optional[int] = ..., min_edge: _Optional[int] = ..., max_edge: _Optional[int] = ..., edge_multiple: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_references: _Optional[int] = ..., max_reference_bytes: _Optional[int] = ..., max_reference_pixels: _Optional[int] = ..., max_prompt_tokens: _Optional[int] = ..., image_formats: _Optional[_Iterable[_Union[ImageFormat, str]]] = ..., preview_formats: _Optional[_Iterable[_Union[PreviewFormat, str]]] = ..., alpha_methods: _Optional[_Iterable[_Union[AlphaMethod, str]]] = ..., chunk_bytes: _Optional[int] = ..., price: _Optional[_Union[Price, _Mapping]] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., server_version: _Optional[str] = ..., max_request_bytes: _Optional[int] = ..., max_guidance_scale: _Optional[float] = ...) -> None: ...
