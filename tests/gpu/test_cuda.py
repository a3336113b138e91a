"""What only a CUDA device can show: variable-length attention, offloading, bfloat16 passes, parity in float32."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import Flux2KleinPipeline
from kleinserve.core import Operation, Request, Size
from kleinserve.engine import checkpoint
from kleinserve.engine.attention import Packing, attend
from kleinserve.engine.engine import Engine

from tests.engine.drawing import ask, begin, decode, denoise, draw, loaded, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"


def engine(dtype: str, memory: str = "resident", compile: str = "off", quantize: str = "none") -> Engine:
    return loaded(device=DEVICE, dtype=dtype, memory=memory, compile=compile, quantize=quantize)


def requests() -> list[Request]:
    """Mixed sizes and step counts, an edit of two references among them."""
    two = (reference(64, 64, 1, 4), reference(96, 64, 2, 4))
    return [
        ask("1", Operation.GENERATE, "a red circle", (), Size(128, 128), 1, 4, 1.0),
        ask("2", Operation.GENERATE, "a blue star on a green background", (), Size(256, 128), 2, 3, 1.0),
        ask("3", Operation.EDIT, "put image 1 and image 2 side by side", two, Size(128, 96), 3, 2, 1.0),
        ask("4", Operation.GENERATE, "a gray ring", (), Size(64, 64), 4, 4, 1.0),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_channels", [32, 128])
def test_packed_attention_equals_one_by_one(dtype: torch.dtype, head_channels: int) -> None:
    """Sequences side by side attend as each does alone, within the dtype's rounding."""
    texts, images = [40, 40, 512, 40], [64, 0, 1024, 7]
    packing = Packing.of(texts, images, torch.device(DEVICE))
    generator = torch.Generator(DEVICE).manual_seed(0)
    shape = (3, 1, sum(packing.lengths), 4, head_channels)
    query, key, value = torch.randn(shape, generator=generator, device=DEVICE).to(dtype)
    packed = attend(query, key, value, packing.ends, packing.host_ends)[0].split(packing.lengths)
    alone = [x[0].float().split(packing.lengths) for x in (query, key, value)]
    for made, *single in zip(packed, *alone, strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in single)
        expected = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
        tolerance = 1e-4 if dtype is torch.float32 else 2e-2
        torch.testing.assert_close(made.float(), expected, rtol=tolerance, atol=tolerance)


def test_float32_equals_stock() -> None:
    """On CUDA too, a picture packed among others is what the stock pipeline makes of it: the noise is the CPU's."""
    ours = engine("float32")
    pipeline = Flux2KleinPipeline.from_pretrained(checkpoint.MINI).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    first = requests()[0]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        stock = pipeline(
            prompt=first.prompt,
            height=first.size.height,
            width=first.size.width,
            num_inference_steps=first.options.steps,
            generator=torch.Generator().manual_seed(first.options.seed),
            output_type="np",
            text_encoder_out_layers=(1, 2, 3),
            max_sequence_length=ours.facts.prompt_tokens_max,
        ).images[0]
        made = draw(ours, *requests())[0]
    on_white = stock[..., :3] * stock[..., 3:] + (1 - stock[..., 3:])
    assert np.abs(made / 255 - on_white).max() <= 2 / 255


def test_packed_bfloat16_step_is_the_float32_step() -> None:
    """One packed step in bfloat16 estimates what float32 does, every row within a few hundredths of its spread."""
    estimates = []
    for dtype in ("bfloat16", "float32"):
        ours = engine(dtype)
        renders = begin(ours, requests())
        ours.step(renders)
        estimates.append([render.row.estimate for render in renders if render.row is not None])
    for rough, exact in zip(*estimates, strict=True):
        assert rough is not None
        assert exact is not None
        assert rough.dtype == torch.float32
        assert (rough - exact).square().mean().sqrt() < 0.05 * exact.std()


def test_offload_equals_resident() -> None:
    """Offloaded pictures are the resident ones, and between uses text encoder and VAE are not on the device."""
    resident, offloaded = engine("bfloat16"), engine("bfloat16", "offload")
    assert (resident.plan.is_offloaded, offloaded.plan.is_offloaded) == (False, True)
    for ours, theirs in zip(draw(offloaded, *requests()), draw(resident, *requests()), strict=True):
        assert np.abs(ours.astype(int) - theirs).max() <= 1
    for module in (offloaded._conditioning.text.module, offloaded._vae.module):
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"cpu"}


def test_a_decode_beside_the_steps_changes_neither() -> None:
    """Pictures stepped while another thread encodes and decodes on its own stream are those drawn in peace."""
    ours = engine("bfloat16")
    asked = [replace(request, options=replace(request.options, steps=4)) for request in requests()]
    expected, others, renders = draw(ours, *asked), begin(ours, asked), begin(ours, asked)
    denoise(ours, others)
    with ThreadPoolExecutor(1) as beside:
        for _ in range(20):
            following = beside.submit(
                begin, ours, asked
            )  # its noise would lie where noise lay that was freed too early
            beside.submit(decode, ours, others)
            for _ in range(4):
                ours.step(renders)
            for made, alone in zip(beside.submit(decode, ours, renders).result(), expected, strict=True):
                assert np.abs(made.astype(int) - alone).max() <= 2
            others, renders = begin(ours, asked), following.result()
            denoise(ours, others)


@pytest.mark.parametrize("quantize", ["none", "fp8"])
def test_compiled_equals_eager_and_nothing_is_compiled_again(quantize: str) -> None:
    """With blocks and norms compiled, pictures are the eager ones within bfloat16's rounding, at any size."""
    if quantize == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs compute capability 8.9")
    eager, fast = engine("bfloat16"), engine("bfloat16", compile="on", quantize=quantize)
    fast.warm()
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            made = draw(fast, *requests())
            made += [draw(fast, request)[0] for request in requests()]
    finally:
        torch.compiler.set_stance("default")
    for ours, theirs in zip(made, draw(eager, *requests()) * 2, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 2
