"""The whole engine on a CUDA device that is none: every operator's devices and dtypes are right, nothing is computed.

    python -m tests.fake_cuda.walk MODEL,DTYPE,MEMORY[,what to break] ...

prints, as JSON, what passed between host and device at every stage of each case.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils._device  # it must not meet the fakes half-imported
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline  # noqa: F401
from kleinserve.config import load
from kleinserve.core import Background, Operation, Options, Output, Pixels, Reference, Request, Size
from kleinserve.engine import checkpoint, geometry, memory, pixels, preview, schedule
from kleinserve.engine.engine import Engine
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tests.fake_cuda import fakes

LAYERS_MAX = 2
TEXT_LAYERS = (1, 2, 4)  # those read, the last of which ends the text encoder
SIZE, OTHER = Size(128, 128), Size(96, 128)


def main(*cases: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        mode = fakes.install(Path(directory))
    give_values()
    with mode:
        print(json.dumps({case: walked(*case.split(",")) for case in cases}))


def walked(model: str, dtype: str, kept: str, broken: str = "") -> dict[str, Any]:
    settings = {"device": "cuda:0", "dtype": dtype, "memory": kept, "compile": "off", "threads": 1}
    engine = Engine(shallow(checkpoint.find(model)), load(settings))
    modules = engine._vae.module, engine._conditioning.text.module
    fakes.WEIGHTS.clear()
    fakes.WEIGHTS.update(id(tensor) for module in modules for tensor in module.buffers())
    with breaking(engine, broken):
        stages = walk(engine, only=("text", "begin", "first step", "previews", "decode") if broken else ())
    tensors = ([*module.parameters(), *module.buffers()] for module in modules)
    vae, text = (sum(tensor.nbytes for tensor in every) for every in tensors)
    return {"weights": {"vae": vae, "text": text}, "stages": stages}


def shallow(layout: checkpoint.Layout) -> checkpoint.Layout:
    """Its widths, with a few layers of each kind where there are dozens: the third is walked as the second is."""
    config = layout.transformer_config
    for layers in ("num_layers", "num_single_layers"):
        config[layers] = min(config[layers], LAYERS_MAX)
    if layout.text_layers[-1] > TEXT_LAYERS[-1]:
        layout.__dict__["text_layers"] = TEXT_LAYERS
    return layout


def with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    def outside(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return outside


def give_values() -> None:
    """Let those few functions have values whose results the host reads."""

    def place(network: torch.nn.Module, name: str, device: str, value: torch.Tensor, dtype: torch.dtype) -> None:
        owner, _, own = name.rpartition(".")
        network.get_submodule(owner)._parameters[own] = torch.nn.Parameter(value.to(dtype), requires_grad=False)

    geometry.set_module_tensor_to_device = place
    schedule.sigmas = with_values(schedule.sigmas)
    FlowMatchEulerDiscreteScheduler.from_pretrained = with_values(FlowMatchEulerDiscreteScheduler.from_pretrained)
    preview._pictures = lambda channels: torch.empty(64, channels, 64, 64)
    pixels.Fetch.array = lambda self: np.zeros(tuple(self._host.shape), str(self._host.dtype).removeprefix("torch."))


@contextmanager
def breaking(engine: Engine, broken: str) -> Iterator[None]:
    """What the test shows to be noticed."""
    finish = memory.finish
    if broken == "device":  # a tensor left on the host
        engine._vae._std = engine._vae._std.to("cpu")
    elif broken == "order":  # nobody waits for a stream
        memory.finish = lambda device: None
    yield
    memory.finish = finish


def requests(engine: Engine) -> list[Request]:
    """A generation, an edit of two references, and a cut-out; with real guidance where the model has it."""
    channels = 4 if engine.facts.has_native_alpha else 3
    sizes = (Size(64, 64), Size(96, 64))
    two = tuple(Reference(Pixels(size, channels, bytes(size.pixels * channels)), bytes([size.width])) for size in sizes)
    scale = engine.facts.default_guidance_scale
    cut_out = Options(3, 3, scale, output=Output(background=Background.TRANSPARENT))
    return [
        Request("1", Operation.GENERATE, "a red circle", (), SIZE, Options(1, 3, scale)),
        Request("2", Operation.EDIT, "put them side by side", two, OTHER, Options(2, 3, scale)),
        Request("3", Operation.GENERATE, "a star", (), SIZE, cut_out),
    ]


def walk(engine: Engine, only: tuple[str, ...]) -> dict[str, Any]:
    """What was seen at every stage; a few of them where the others would show the same."""
    renders = [engine.render(request) for request in requests(engine)]
    plain, edit, cut_out = renders
    stages = {
        "text": lambda: list(engine.text(renders)),
        "text again": lambda: list(engine.text(renders)),
        "begin": lambda: [list(engine.begin(render)) for render in renders],
        "first step": lambda: engine.step(renders),
        "next step": lambda: engine.step(renders),
        "previews": lambda: engine.previews(renders),
        "other rows": lambda: engine.step([plain, cut_out]),
        "last step": lambda: engine.step([edit]),
        "decode": lambda: list(engine.decode([plain])),
        "decode tiled": lambda: list(engine.decode([edit], tiled=True)),
        "decode cut-out": lambda: list(engine.decode([cut_out])),
    }
    if cut_out.passes == 2:
        stages["begin second"] = lambda: list(engine.begin_second(cut_out))
        stages["second step"] = lambda: engine.step([cut_out])
    seen = {}
    for name in only or stages:
        work = stages[name]
        with fakes.Watch() as watch:
            try:
                work()
            except Exception as error:  # where something is broken on purpose
                watch.mixed.add(str(error).splitlines()[0][:200])
        seen[name] = watch.facts()
    return seen


if __name__ == "__main__":
    main(*sys.argv[1:])
