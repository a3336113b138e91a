"""The VAE in pieces against the stock one in one go."""

import copy
import gc
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2
from kleinserve.core import Size
from kleinserve.engine.checkpoint import MINI
from kleinserve.engine.vae import Pieces, Vae, finished
from torch import Tensor

from tests.engine.checkpoints import klein

CPU = torch.device("cpu")
LAYOUTS = {"mini": lambda directory: MINI, "three": klein, "four": lambda directory: klein(directory, channels=4)}


@pytest.fixture(scope="module", params=LAYOUTS)
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AutoencoderKLFlux2:
    directory: Path = LAYOUTS[request.param](tmp_path_factory.mktemp("checkpoint"))
    torch.set_num_threads(1)
    return AutoencoderKLFlux2.from_pretrained(directory, subfolder="vae").eval()


def picture(vae: AutoencoderKLFlux2, width: int, height: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.rand(count, vae.config.in_channels, height, width, generator=generator) * 2 - 1


@torch.inference_mode()
def stock_tokens(vae: AutoencoderKLFlux2, pictures: Tensor) -> Tensor:
    """As Flux2KleinPipeline._encode_vae_image has them."""
    latents = torch.nn.functional.pixel_unshuffle(vae.encode(pictures).latent_dist.mode(), 2)
    mean, spread = vae.bn.running_mean.view(1, -1, 1, 1), (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    return ((latents - mean) / spread.view(1, -1, 1, 1)).flatten(2).transpose(1, 2)


@torch.inference_mode()
def stock_picture(ours: Vae, stock: AutoencoderKLFlux2, tokens: Tensor, size: Size) -> Tensor:
    made: Tensor = stock.decode(ours.latents(tokens, size), return_dict=False)[0]
    return made


@pytest.mark.parametrize(("width", "height", "count"), [(64, 64, 1), (96, 64, 3), (128, 256, 1)])
def test_pieces_make_the_stock_tokens_and_picture(
    width: int, height: int, count: int, stock: AutoencoderKLFlux2
) -> None:
    """Encoded and decoded in pieces, pictures alone and in threes are bit for bit the stock module's."""
    ours, pictures = Vae(stock, CPU, 1 << 20), picture(stock, width, height, count)
    tokens = finished(ours.encode(pictures))
    assert torch.equal(tokens, stock_tokens(stock, pictures))
    made = finished(ours.decode(list(tokens), Size(width, height)))
    assert torch.equal(made, stock_picture(ours, stock, tokens, Size(width, height)))


@pytest.mark.parametrize(("width", "height"), [(256, 256), (144, 320), (64, 208)])
def test_tiles_are_the_stock_tiles(width: int, height: int, stock: AutoencoderKLFlux2) -> None:
    """Larger than is done in one go, a picture is encoded and decoded in the stock module's tiles, blended alike."""
    tiled = copy.deepcopy(stock)
    tiled.use_tiling, tiled.tile_sample_min_size, tiled.tile_latent_min_size = True, 128, 16
    ours, pictures = Vae(tiled, CPU, 4096), picture(stock, width, height)
    tokens = finished(ours.encode(pictures))
    assert torch.equal(tokens, stock_tokens(tiled, pictures))
    whole, size = Vae(tiled, CPU, 1 << 20), Size(width, height)
    expected = stock_picture(ours, tiled, tokens, size)
    assert torch.equal(finished(ours.decode(list(tokens), size)), expected)
    assert torch.equal(finished(whole.decode(list(tokens), size, is_tiled=True)), expected)


def test_mini_has_pieces_enough(stock: AutoencoderKLFlux2) -> None:
    """Others may go between at least ten parts of a decode, and eight of an encode."""
    ours = Vae(stock, CPU, 1 << 20)
    assert sum(1 for _ in ours.encode(picture(stock, 64, 64))) >= 8
    assert sum(1 for _ in ours.decode([torch.zeros(16, ours.latent_channels)], Size(64, 64))) >= 10


def test_decodes_in_turns_do_not_meet(stock: AutoencoderKLFlux2) -> None:
    """Two decodes and an encode advanced in turns give what each gives alone; between pieces no mode is left on."""
    ours, sizes = Vae(stock, CPU, 1 << 20), (Size(64, 96), Size(128, 64))
    tokens = [torch.randn(size.tokens, ours.latent_channels) for size in sizes]
    pictures = picture(stock, 96, 96)

    def begun() -> list[Pieces[Tensor]]:
        decodes = [ours.decode([own], size) for own, size in zip(tokens, sizes, strict=True)]
        return [*decodes, ours.encode(pictures)]

    alone, running, results = [finished(work) for work in begun()], dict(enumerate(begun())), {}
    while running:
        for i, work in list(running.items()):
            try:
                next(work)
            except StopIteration as end:
                results[i] = end.value
                del running[i]
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
    assert all(torch.equal(results[i], made) for i, made in enumerate(alone))


def test_a_decode_closed_half_way_leaves_nothing(stock: AutoencoderKLFlux2) -> None:
    """Closed in the middle, its tensors are gone, no mode is left on, and the next decode is as ever."""
    ours, size = Vae(stock, CPU, 1 << 20), Size(64, 64)
    tokens = torch.randn(size.tokens, ours.latent_channels)
    expected = finished(ours.decode([tokens], size))
    before = tensors()
    work = ours.decode([tokens], size)
    for _ in range(4):
        next(work)
    assert tensors() > before
    work.close()
    assert tensors() == before
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(finished(ours.decode([tokens], size)), expected)


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())
