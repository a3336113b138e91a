"""The shapes of mini's modules and the directory that they are saved in. Knows nothing about training."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import nn
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from training.requests import TRANSPARENT_PHRASE

CHECKPOINT = Path(__file__).parents[1] / "server" / "kleinserve" / "mini"
DEPTH = 4
OUT_LAYERS = (1, 2, 3)  # a quarter, a half and three quarters of the depth, as in klein
TEXT_WIDTH = 128
LATENT_CHANNELS = 8
POSTERIOR_STD = 0.1  # fixed: what the decoder was trained to forgive


def build_vae() -> AutoencoderKLFlux2:
    """Four channels in and out; one norm group, since several erase flat colours at this width."""
    vae = AutoencoderKLFlux2(
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=256,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # the posterior's width is a constant, not learnt
        vae.quant_conv.weight[LATENT_CHANNELS:].zero_()
        vae.quant_conv.bias[LATENT_CHANNELS:].fill_(2 * torch.tensor(POSTERIOR_STD).log())
    return vae


def build_transformer() -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=len(OUT_LAYERS) * TEXT_WIDTH,
        mlp_ratio=3.0,
        axes_dims_rope=(4, 12, 12, 4),
        rope_theta=100,
        guidance_embeds=False,
    )


def text_config(vocabulary: int, layers: int = DEPTH) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        use_cache=False,
    )


def build_text(vocabulary: int) -> Qwen3Model:
    """The layers that are read, without the last norm: hidden state 3 of the whole model comes before it."""
    text = Qwen3Model(text_config(vocabulary, max(OUT_LAYERS)))
    text.norm = nn.Identity()
    return text


def prompt_embeds(text: Qwen3Model, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """[B, T, 3 * width], stacked as the stock pipeline stacks them."""
    states = text(
        input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, use_cache=False
    ).hidden_states
    return torch.cat([states[k] for k in OUT_LAYERS], -1)


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """klein's own configuration."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        time_shift_type="exponential",
    )


def whole_text(text: Qwen3Model, vocabulary: int) -> Qwen3ForCausalLM:
    """The causal model around the trained layers; its last layer and head are never read."""
    torch.manual_seed(0)
    whole = Qwen3ForCausalLM(text_config(vocabulary))
    missing = whole.model.load_state_dict(text.state_dict(), strict=False)
    assert not missing.unexpected_keys
    return whole


def pipeline(
    vae: AutoencoderKLFlux2, transformer: Flux2Transformer2DModel, text: Qwen3Model, tokenizer: Qwen2TokenizerFast
) -> Flux2KleinPipeline:
    return Flux2KleinPipeline(
        scheduler=scheduler(),
        vae=vae.eval(),
        text_encoder=whole_text(text, len(tokenizer)).eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
        is_distilled=True,
    )


def save(pipe: Flux2KleinPipeline, directory: Path = CHECKPOINT) -> None:
    """Write the diffusers directory, and beside it what only a server needs to know.

    Transformer and VAE are stored in float16, which diffusers loads as float32 unless told otherwise; transformers
    would keep float16, so the text encoder is stored in float32.
    """
    pipe.transformer.half()
    pipe.vae.half()
    pipe.save_pretrained(directory, safe_serialization=True)
    index = directory / "model_index.json"  # klein's own name for the class, which every version of transformers knows
    index.write_text(index.read_text().replace('"Qwen2Tokenizer"', '"Qwen2TokenizerFast"'))
    (directory / "kleinserve.json").write_text(json.dumps({"transparent_phrase": TRANSPARENT_PHRASE}) + "\n")
    for path in directory.rglob("*.safetensors"):
        path.chmod(0o644)
