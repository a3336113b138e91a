"""Every limit and default of the server, with unit and reason. Read once at start, validated, then frozen.

Sources, strongest first: command line, environment (`KLEINSERVE_` + upper-case name), the TOML file of `--config`.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ENVIRONMENT_PREFIX = "KLEINSERVE_"
MIB = 1024 * 1024

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
PortNumber = Annotated[int, Field(ge=0, le=65535)]


class BadConfig(Exception):
    """A setting that is unknown, unparsable or out of range: one line, exit code 2."""


class Config(BaseSettings):
    """The server's settings; field names are the keys of the TOML file."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX)

    model: str = "mini"  # mini | a directory | a hub id | geometry:klein-4b (9b, base-4b, base-9b) | geometry:DIR
    revision: str = ""  # of a hub id: a commit, tag or branch; empty: its main branch as it is now
    vae: str = ""  # a directory or hub id whose VAE is loaded in the model's place (FLUX.2-small-decoder)
    host: str = "127.0.0.1"
    port: PortNumber = 50051
    metrics_port: PortNumber = 9464  # plain HTTP on `host`: /metrics, /healthz, /readyz
    device: str = "auto"  # auto | cpu | cuda | cuda:N
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 on CPU where it fits
    memory: Literal["auto", "resident", "offload"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"  # auto: on CUDA. On a CPU it starts half a minute later
    quantize: Literal["none", "fp8"] = "none"  # fp8: CUDA alone, with torchao; pictures differ, see docs/PERF.md
    threads: Annotated[int, Field(ge=0)] = 0  # torch's threads; 0: all cores but one, at least 1
    codec_threads: Count = 2  # image decoding and encoding
    mu_policy: Literal["official", "fixed", "clamp"] = "official"  # how the schedule is shifted, see engine/schedule.py

    step_tokens_max: Annotated[int, Field(ge=0)] = 0  # of one step, a larger request steps alone; 0: by calibration
    decode_pixels_max: Count = 4_194_304  # pixels in one VAE decode; a larger picture is decoded in tiles
    prompt_cache_bytes_max: Annotated[int, Field(ge=0)] = 256 * MIB
    reference_cache_bytes_max: Annotated[int, Field(ge=0)] = 256 * MIB

    queue_requests_max: Count = 256
    queue_bytes_max: Count = 1024 * MIB  # of waiting requests, as sent and with their references decoded
    request_bytes_max: Count = 44 * MIB  # gRPC's receive limit: 4 references of 10 MiB and room to spare
    max_steps: Count = 50
    chunk_bytes: Annotated[int, Field(ge=1024, le=MIB)] = MIB  # every language's default message limit is 4 MiB
    reference_bytes_max: Count = 10 * MIB
    reference_pixels_max: Count = 26_214_400  # 25 megapixels by the header, before decoding
    reader_stall_seconds: Seconds = 60.0
    deadline_admission: bool = True  # refuse what cannot meet its deadline; else only end it when it has passed
    deadline_margin_seconds: Annotated[float, Field(ge=0)] = 0.05  # so that our answer arrives before the deadline
    drain_grace_seconds: Seconds = 30.0
    drain_notice_seconds: Annotated[float, Field(ge=0)] = 0.0  # NOT_SERVING this long before requests are refused

    price_version: str = "2026-01"
    price_first_output_megapixel_microusd: Annotated[int, Field(ge=0)] = 14_000
    price_further_output_megapixel_microusd: Annotated[int, Field(ge=0)] = 1_000
    price_reference_megapixel_microusd: Annotated[int, Field(ge=0)] = 0

    log_format: Literal["json", "console"] = "json"
    log_prompts: bool = False  # prompts are callers' data

    @property
    def torch_threads(self) -> int:
        """Threads for torch: the setting, or all cores but one, which the event loop and the codecs keep."""
        return self.threads or max(1, (os.cpu_count() or 1) - 1)


def load(overrides: dict[str, Any], file: Path | None = None) -> Config:
    """The configuration from the command line's `overrides`, the environment and the TOML `file`.

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
        return Config(**(settings | from_environment | overrides))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        given = "" if first["type"] == "extra_forbidden" else f" (given: {first['input']!r})"
        problem = "unknown setting" if first["type"] == "extra_forbidden" else first["msg"]
        raise BadConfig(f"setting {name}: {problem}{given}") from error
