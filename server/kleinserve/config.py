"""Every limit and default of the server, with unit and reason. Read once at start, validated, then frozen.

Sources, strongest first: command line, environment (`KLEINSERVE_` + upper-case name), the TOML file of `--config`.
"""

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from kleinserve import process
from kleinserve.core import EDGE_MULTIPLE, Size, limits
from kleinserve.errors import BadConfig as BadConfig
from kleinserve.errors import quoted

ENVIRONMENT_PREFIX = "KLEINSERVE_"
MIB = 1024 * 1024

Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]  # 0: none, or as the line says
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
SecondsOrNone = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # 0: none, or as the line says
PortNumber = Annotated[int, Field(ge=0, le=65535)]  # 0: picks a free one


def _host(given: object) -> object:
    """A host without the brackets of an address of version 6."""
    if not isinstance(given, str):
        return given
    host = given[1:-1] if given.startswith("[") and given.endswith("]") else given
    if ":" in host or host != given:
        ipaddress.IPv6Address(host)  # raises ValueError, also for HOST:PORT
    if not host or re.search(r"[\s/\[\]]", host):
        raise ValueError("is no name and no address")
    return host


def _origins(given: object) -> object:
    """A list of origins, or a string with commas between them."""
    origins = [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
    for origin in origins if isinstance(origins, list | tuple) else ():
        if not re.fullmatch(r"https?://[a-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:.]+\](:\d+)?", str(origin)):
            raise ValueError(f"{quoted(origin)} is no origin as browsers send it: https://name or https://name:port")
    return origins


def _address(given: str) -> str:
    """HOST:PORT, or nothing. An address of version 6 gets its brackets: POD_IP of a cluster has none."""
    host, _, port = given.rpartition(":")
    if given and not (port.isdigit() and 0 < int(port) < 65536 and _host(host)):
        raise ValueError("is not HOST:PORT")
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else given


def _range(given: str) -> str:
    """MIN:MAX, or nothing."""
    bounds = re.fullmatch(r"([1-9]\d{0,4}):([1-9]\d{0,4})", given)
    if given and not (bounds and int(bounds[1]) <= int(bounds[2])):
        raise ValueError("is not MIN:MAX, both at least 1")
    return given


def _sizes(given: object) -> object:
    """A list of sizes as 1024x1024, or a string with commas between them."""
    words = [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given
    return [_size(word) for word in words] if isinstance(words, list | tuple) else words


def _size(given: object) -> object:
    if not (isinstance(given, str) and re.fullmatch(r"\d{1,5}x\d{1,5}", given)):
        return given
    size = Size(*map(int, given.split("x")))
    for edge in (size.width, size.height):
        if edge % EDGE_MULTIPLE or not limits.EDGE_MIN <= edge <= limits.EDGE_MAX:
            raise ValueError(
                f"{given}: edges are multiples of {EDGE_MULTIPLE} from {limits.EDGE_MIN} to {limits.EDGE_MAX}"
            )
    if size.pixels > limits.PIXELS_MAX:
        raise ValueError(f"{given}: more than {limits.PIXELS_MAX} pixels")
    return size


Sizes = Annotated[
    tuple[Size, ...], BeforeValidator(_sizes), PlainSerializer(lambda sizes: [str(size) for size in sizes])
]


class Config(BaseModel):
    """The server's settings; field names are the keys of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = "mini"  # mini | a directory | a hub id | geometry:klein-4b (9b, base-4b, base-9b) | geometry:DIR
    revision: str = ""  # of a hub id: a commit, tag or branch; empty: its main branch as it is now
    vae: str = ""  # a directory or hub id whose VAE is loaded in the model's place (FLUX.2-small-decoder)
    host: Annotated[str, BeforeValidator(_host)] = "127.0.0.1"  # a name or an address; `::` is IPv4 too
    port: PortNumber = 50051
    metrics_port: PortNumber = 9464  # plain HTTP on `host`: /metrics, /healthz, /readyz
    web_port: PortNumber | None = None  # gRPC-Web, the playground and OpenAI's API on `host`; absent: off
    web_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = ()  # other pages that may call it
    backend: Literal["local", "ray"] = "local"
    ray_address: str = ""  # HOST:PORT of a Ray cluster's head, or auto; empty: a cluster of its own on this machine
    replicas: Annotated[str, AfterValidator(_range)] = ""  # MIN:MAX on Ray, scaled by their work; empty: 1:1
    replica_metrics_port: PortNumber | None = None  # on Ray, of each replica's machine: the engine's; absent: off
    fronts: CountOrNone = 0  # on Ray; 0: as many as nodes have the resource `front`, at least 1
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 on CPU where it fits
    memory: Literal["auto", "resident", "offload"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on CUDA. On a CPU it is slower, also to start
    quantize: Literal["none", "fp8"] = "none"  # fp8: CUDA alone, with torchao; pictures differ, see docs/PERF.md
    warm_sizes: Sizes = ()  # drawn by both threads before it is ready: 1024x1024,512x512; none: on CUDA the model's own
    threads: CountOrNone = 0  # torch's threads; 0: all cores that the process may use but one, at least 1
    codec_threads: Count = 2  # image decoding and encoding
    malloc_arenas: CountOrNone = 2  # of glibc, whose default of 8 a core keeps freed memory apart; 0: that default
    mu_policy: Literal["official", "fixed", "clamp"] = "official"  # how the schedule is shifted, see engine/schedule.py

    callers: Path | None = None  # TOML: who may call, with what; absent: everyone is `anonymous`
    tls_certificate: Path | None = None  # PEM, with the chain; this and the key: TLS on the gRPC and the web port
    tls_key: Path | None = None  # PEM
    tls_client_ca: Path | None = None  # PEM; every connection then needs a certificate of this CA
    insecure: bool = False  # allow a host that others reach without callers and TLS: behind a mesh that does both

    ledger: Annotated[str, Field(repr=False)] = (
        "sqlite"  # sqlite (usage.db in the user's data) | a SQLAlchemy URL | none
    )
    owner: str = ""  # this server's name among those on one PostgreSQL, its own after a restart too; empty: a new one
    owner_seconds: Seconds = 15.0  # one of them that says nothing for so long is gone, and its keys are the others'
    advertise: Annotated[str, AfterValidator(_address)] = ""  # HOST:PORT where they reach it; empty: the one served
    replicas_ca: Path | None = None  # PEM: with TLS, of their certificates; absent: the system's
    key_seconds: Seconds = 86_400.0  # an idempotency key is known this long
    keys_max: Count = 1_000_000  # the oldest go first; about 300 bytes each
    kept_bytes_max: CountOrNone = 512 * MIB  # of finished images that their keys fetch again; an eighth a caller
    kept_seconds: SecondsOrNone = 600.0  # they are kept this long
    latent_previews: bool = True  # who decodes a late one himself and cancels has a picture for nothing

    step_tokens_max: CountOrNone = 0  # of one step, a larger request steps alone; 0: by calibration
    running_requests_max: Count = 32  # begun and not yet decoded: the device holds something of each
    watchdog_seconds: Seconds = 60.0  # a call of the engine that lasts longer, and ten times what is predicted, hangs
    decode_pixels_max: Count = 4_194_304  # pixels in one VAE decode; a larger picture is decoded in tiles
    prompt_cache_bytes_max: CountOrNone = 256 * MIB
    reference_cache_bytes_max: CountOrNone = 256 * MIB

    queue_requests_max: Count = 256
    queue_bytes_max: Count = 1024 * MIB  # of waiting requests, as sent and with their references decoded
    request_bytes_max: Count = 44 * MIB  # gRPC's receive limit: 4 references of 10 MiB and room to spare
    max_steps: Count = 50
    chunk_bytes: Annotated[int, Field(ge=1024, le=MIB)] = 64 * 1024  # of the image: a line of 2 KiB/s never stalls
    reference_bytes_max: Count = 10 * MIB
    reference_pixels_max: Count = 26_214_400  # 25 megapixels by the header, before decoding
    intake_workers: Annotated[int, Field(ge=0)] = 0  # processes that decode references; 0: 2, on one core 1
    intake_seconds_max: Seconds = 5.0  # of processor, for one reference
    intake_pixel_bytes_max: Count = 24  # memory for decoding one, per pixel by its header; 20 is the most seen (WebP)
    reader_stall_seconds: Seconds = 60.0
    deadline_admission: bool = True  # refuse what cannot meet its deadline; else only end it when it has passed
    deadline_margin_seconds: SecondsOrNone = 0.05  # so that our answer arrives before the deadline
    keepalive_seconds: SecondsOrNone = 10.0  # a silent connection is asked whether it lives; 0: never
    keepalive_timeout_seconds: Seconds = 10.0  # and ends after this: a client that vanished is noticed within the sum
    max_connection_age_seconds: SecondsOrNone = (
        0.0  # then a connection is told to go, so that balancers spread; 0: never
    )
    max_connection_grace_seconds: SecondsOrNone = 0.0  # streams of such a connection are cut after this; 0: never
    drain_grace_seconds: Seconds = 30.0
    drain_notice_seconds: SecondsOrNone = 0.0  # NOT_SERVING this long before requests are refused

    price_version: str = "2026-01"
    price_first_output_megapixel_microusd: CountOrNone = 14_000
    price_further_output_megapixel_microusd: CountOrNone = 1_000
    price_reference_megapixel_microusd: CountOrNone = 0

    log_format: Literal["json", "console"] = "json"
    log_prompts: bool = False  # prompts are callers' data
    slow_request_seconds: SecondsOrNone = 30.0  # a request that takes longer gets a log line; 0: none does

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key are needed together")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if not (self.is_loopback or self.insecure or (self.callers and self.tls_certificate)):
            raise ValueError(
                f"host {quoted(self.host)} can be reached by others: it needs --callers and --tls-certificate with "
                "--tls-key, or --insecure behind a mesh that does both"
            )
        beyond = sorted(self.model_fields_set & {"ray_address", "replicas", "replica_metrics_port", "fronts"})
        if self.backend != "ray" and beyond:
            raise ValueError(f"{beyond[0]} needs --backend ray")
        if self.backend == "ray" and (self.owner or self.advertise):
            raise ValueError("owner and advertise are one server's: with --backend ray each front has its own")
        if self.backend == "ray" and self.device.startswith("cuda:"):
            raise ValueError(f"device {quoted(self.device)}: with --backend ray Ray chooses, say cuda")
        if self.fronts > 1 and self.ledger.startswith("sqlite"):
            raise ValueError(f"{self.fronts} fronts need a ledger that they share, or none (--ledger)")
        if self.ledger not in ("sqlite", "none") and "://" not in self.ledger:
            raise ValueError(f"ledger {quoted(masked(self.ledger))} is neither sqlite nor none nor a URL (--ledger)")
        return self

    @property
    def torch_threads(self) -> int:
        """Threads for torch: the setting, or all cores but one, which the event loop and the codecs keep."""
        return self.threads or max(1, process.cores() - 1)

    @property
    def replica_bounds(self) -> tuple[int, int]:
        """Least and most replicas on Ray."""
        least, _, most = (self.replicas or "1:1").partition(":")
        return int(least), int(most)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches `host`. Of names only localhost is trusted to say so."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host.lower() == "localhost"
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        return (mapped or address).is_loopback

    def address(self, port: int) -> str:
        """HOST:PORT as gRPC takes it and as it is announced, with brackets around an address of version 6."""
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"

    def shown(self) -> dict[str, Any]:
        """Every setting as it may be logged: plain values, secrets masked."""
        return self.model_dump(mode="json") | {"ledger": masked(self.ledger)}


def masked(text: str) -> str:
    """A URL with *** in place of its password, also where that is a parameter; any other text as it is."""
    text = re.sub(r"(://[^:/?@]*:).*@", r"\1***@", text, flags=re.DOTALL)
    return re.sub(r"(?i)([?&][^=&]*(?:pass|secret|token|key)[^=&]*=)[^&]*", r"\1***", text)


def load(overrides: dict[str, Any], file: Path | None = None, *, is_elsewhere: bool = False) -> Config:
    """The configuration from the command line's `overrides`, the environment and the TOML `file`.

    `is_elsewhere`: other machines serve with it, and theirs are the files that it names.
    Raises: BadConfig, one line naming the setting.
    """
    unknown = [
        name
        for name in os.environ
        if name.startswith(ENVIRONMENT_PREFIX)
        and name.removeprefix(ENVIRONMENT_PREFIX).lower() not in Config.model_fields
    ]
    if unknown:
        raise BadConfig(f"unknown setting in the environment: {', '.join(sorted(unknown))}")
    try:
        settings = tomllib.loads(file.read_text()) if file else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"cannot read {file}: {error}") from error
    from_environment = {
        name: os.environ[ENVIRONMENT_PREFIX + name.upper()]
        for name in Config.model_fields
        if ENVIRONMENT_PREFIX + name.upper() in os.environ
    }
    try:
        config = Config(**(settings | from_environment | overrides))
    except ValidationError as error:
        raise BadConfig(_problem(error)) from None  # whose text holds the values
    if not is_elsewhere:
        _read(config)
    return config


def _problem(error: ValidationError) -> str:
    """The first problem in one line, without secrets."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    message = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
    if not name:
        return message
    if first["type"] == "extra_forbidden":
        return f"setting {name}: unknown setting"
    given = first["input"]
    return f"setting {name}: {message} (given: {quoted(masked(given) if isinstance(given, str) else given)})"


def _read(config: Config) -> None:
    """Try each file that a setting names. Raises: BadConfig."""
    for name in ("callers", "tls_certificate", "tls_key", "tls_client_ca", "replicas_ca"):
        path: Path | None = getattr(config, name)
        try:
            if path is not None:
                path.read_bytes()
        except OSError as error:
            raise BadConfig(f"setting {name}: cannot read {quoted(str(path))}: {error.strerror}") from error
