"""Random checkpoints of every layout, small, whose weights are scaled up until prompts and references matter."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from kleinserve.engine.checkpoint import MINI
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

GAIN = 3.0  # at the default initialisation a prompt moves the picture by less than rounding
CONTROLS = ("[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set tag = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "[{{ tag }}]{% for block in message.content %}{{ block.text }}{% endfor %}[/{{ tag }}]{% endfor %}"
)


def klein(directory: Path, *, is_distilled: bool = True, channels: int = 3) -> Path:
    """A klein layout: Qwen3 of 8 layers, 2 double and 2 single blocks, a VAE of `channels`."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MINI / "tokenizer")
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=8,
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
        )
    )  # fmt: skip
    transformer, vae = random_transformer(guidance_embeds=False), random_vae(channels)
    _amplify(text, transformer)
    pipeline = Flux2KleinPipeline(_scheduler(), vae, text, tokenizer, transformer, is_distilled=is_distilled)
    pipeline.save_pretrained(directory)
    return directory


def flux2(directory: Path) -> Path:
    """A FLUX.2 layout: Mistral3 of 8 layers with a vision tower, left padding, guidance embedded.

    The stock pipeline's tokenizer is a processor, which needs torchvision; the bare tokenizer renders the same ids.
    """
    torch.manual_seed(0)
    tokenizer = mistral_tokenizer()
    text = Mistral3ForConditionalGeneration(
        Mistral3Config(
            text_config=MistralConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=8,
                num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=512,
                sliding_window=None,
            ),
            vision_config=PixtralVisionConfig(
                hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), tie_word_embeddings=False,
        )
    )  # fmt: skip
    transformer = random_transformer(guidance_embeds=True)
    _amplify(text, transformer)
    Flux2Pipeline(_scheduler(), random_vae(3), text, tokenizer, transformer).save_pretrained(directory)
    return directory


def mistral_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding learnt from the system message, with Mistral's special tokens and padding side."""
    encoding = Tokenizer(models.BPE())
    encoding.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", "<pad>", *CONTROLS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    encoding.train_from_iterator([SYSTEM_MESSAGE], trainer)
    encoding.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=encoding, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left", model_max_length=64, chat_template=MISTRAL_TEMPLATE,
    )  # fmt: skip


def random_transformer(*, guidance_embeds: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=32, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=96, timestep_guidance_channels=64, axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )  # fmt: skip


def random_vae(channels: int) -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 8, 16, 16), layers_per_block=1,
        latent_channels=8, norm_num_groups=2, sample_size=128,
    )  # fmt: skip
    with torch.no_grad():
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def _amplify(*modules: torch.nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(GAIN)


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="exponential", shift=3.0)
