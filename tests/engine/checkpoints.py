"""Random checkpoints of every layout, small, whose weights are scaled up until prompts and references matter."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from kleinserve.engine.checkpoint import MINI
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

GAIN = 3.0  # at the default initialisation a prompt moves the picture by less than rounding


def klein(directory: Path, *, is_distilled: bool = True, channels: int = 3) -> Path:
    """A klein layout in the field's shape: 3-channel VAE, Qwen3 of 8 layers, 2 double and 2 single blocks."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MINI / "tokenizer")
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=8,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
        )
    )  # fmt: skip
    transformer = Flux2Transformer2DModel(
        in_channels=32, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=96, timestep_guidance_channels=64, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 8, 16, 16), layers_per_block=1,
        latent_channels=8, norm_num_groups=2, sample_size=128,
    )  # fmt: skip
    with torch.no_grad():
        for module in (text, transformer):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(GAIN)
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential", shift=3.0)
    pipeline = Flux2KleinPipeline(scheduler, vae, text, tokenizer, transformer, is_distilled=is_distilled)
    pipeline.save_pretrained(directory)
    return directory
