"""Stand-ins for what a CUDA PyTorch image lacks of our pins, so that the bench runs there with nothing installed.

They are asked last, so what is installed is used. They serve, and no more: settings are not validated, refusals arrive
without their details, there is no health service and no reflection. Nobody but the bench imports this.
"""

import importlib.metadata
import io
import json
import logging
import os
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
from PIL import Image

STOOD_IN = (
    "cachetools",
    "google.rpc",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "imagecodecs",
    "importlib_metadata",
    "platformdirs",
    "pydantic",
    "structlog",
    "uuid_utils",
)
FORCED = "BENCH_STAND_INS"  # set: the stand-ins come first, which is how they are tested


def install(root: Path) -> None:
    """Make this repository importable without being installed, and stand in for what is missing."""
    sys.path += [str(root / folder) for folder in ("server", "client", "proto/gen")]
    sys.meta_path.insert(0 if os.environ.get(FORCED) else len(sys.meta_path), Finder())
    importlib.metadata.version = _versions(importlib.metadata.version)
    _accept_older_runtimes()


class Finder(MetaPathFinder, Loader):
    """Finds the names above and what is below them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        is_ours = any(name == root or name.startswith(f"{root}.") for root in STOOD_IN)
        return ModuleSpec(name, self, is_package=True) if is_ours else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__.update(KNOWN.get(module.__name__, {}))
        module.__dict__["__getattr__"] = _nothing


class Nothing:
    """What may be called, awaited and asked for anything, and does nothing."""

    def __call__(self, *_: Any, **__: Any) -> "Nothing":
        return self

    def __getattr__(self, name: str) -> "Nothing":
        return _nothing(name)

    def __await__(self) -> Iterator[None]:
        yield from ()


def _nothing(name: str) -> Nothing:
    if name.startswith("__"):
        raise AttributeError(name)
    return Nothing()


class Log:
    """structlog's logger: one JSON object a line on standard error, whatever `sys.stderr` has become."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return partial(self._write, level)

    def log(self, level: int, event: str, **facts: object) -> None:
        self._write(logging.getLevelName(level).lower(), event, **facts)

    def _write(self, level: str, event: str, *, exc_info: object = None, **facts: object) -> None:
        print(json.dumps({"level": level, "event": event, **facts}, default=str), file=sys.__stderr__)
        error = exc_info[1] if isinstance(exc_info, tuple) else exc_info
        if error is True or (error is None and level == "exception"):
            error = sys.exception()
        if isinstance(error, BaseException):
            traceback.print_exception(error, file=sys.__stderr__)


class LRUCache(OrderedDict[Any, Any]):
    """cachetools': bounded by the summed sizes of its values, the least recently used goes first."""

    def __init__(self, maxsize: float, getsizeof: Callable[[Any], float] = lambda _: 1):
        super().__init__()
        self.maxsize, self.getsizeof, self.currsize = maxsize, getsizeof, 0.0

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        self.move_to_end(key)
        return value

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def __setitem__(self, key: Any, value: Any) -> None:
        if key in self:
            del self[key]
        self.currsize += self.getsizeof(value)
        super().__setitem__(key, value)
        while self.currsize > self.maxsize:
            del self[next(iter(self))]

    def __delitem__(self, key: Any) -> None:
        self.currsize -= self.getsizeof(super().__getitem__(key))
        super().__delitem__(key)


class BaseModel:
    """pydantic's model, not validated: the class's defaults, then what is given, in the default's type."""

    model_fields: dict[str, Any]

    def __init_subclass__(cls) -> None:
        cls.model_fields = {name: getattr(cls, name, None) for name in cls.__annotations__}

    def __init__(self, **given: Any):
        for name, default in self.model_fields.items():
            value = given.get(name, default)
            is_text = isinstance(value, str) and not isinstance(default, (str, type(None)))
            self.__dict__[name] = type(default)(json.loads(value)) if is_text else value

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return dict(self.__dict__)


class ValidationError(ValueError):
    """Never raised here."""


def png_encode(pixels: Any, **_: Any) -> bytes:
    """imagecodecs', by Pillow: 3 times slower."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


KNOWN: dict[str, dict[str, Any]] = {
    "cachetools": {"LRUCache": LRUCache},
    "google.rpc.code_pb2": {"Code": {code.name: code.value[0] for code in grpc.StatusCode}},
    "imagecodecs": {"png_encode": png_encode},
    "importlib_metadata": vars(importlib.metadata),
    "platformdirs": {"user_cache_path": lambda name: Path.home() / ".cache" / name},
    "pydantic": {"BaseModel": BaseModel, "ConfigDict": dict, "ValidationError": ValidationError},
    "structlog": {"get_logger": lambda *_: Log()},
}


def _versions(known: Callable[[str], str]) -> Callable[[str], str]:
    def version(package: str) -> str:
        try:
            return known(package)
        except importlib.metadata.PackageNotFoundError:
            if package == "klein-serve":
                return "0"  # not installed
            raise

    return version


def _accept_older_runtimes() -> None:
    """Let the committed stubs run on an image's older grpcio and protobuf; they use nothing new."""
    import grpc._utilities
    from google.protobuf import runtime_version

    runtime_version.ValidateProtobufRuntimeVersion = lambda *_: None
    grpc._utilities.first_version_is_lower = lambda *_: False
