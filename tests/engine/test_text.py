"""Prompts become the tokens and hidden states that the stock pipelines make of them, padding included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from kleinserve.engine import checkpoint
from kleinserve.engine.text import TextEncoder, Tokenizer, Tokens
from kleinserve.engine.vae import finished
from safetensors.torch import load_file, save_file
from transformers import ProcessorMixin

from tests.engine.checkpoints import MISTRAL_TEMPLATE, flux2, klein, mistral_tokenizer

LAYOUTS = {"mini": lambda directory: checkpoint.MINI, "klein": klein, "flux2": flux2}
PROMPTS = ["", "a red circle", "the letter K [IMG] on green", "a very long prompt " * 40]


def encoder(directory: Path) -> TextEncoder:
    """The text encoder as the engine builds it, without the transformer's projection and without a cache."""
    layout = checkpoint.find(str(directory))
    torch.set_num_threads(1)
    modules = checkpoint.load(layout, torch.float32)
    is_mistral = layout.text_encoder_class == "Mistral3ForConditionalGeneration"
    tokenizer = Tokenizer(modules.tokenizer, modules.tokenizer.model_max_length, is_mistral=is_mistral)
    cpu = torch.device("cpu")
    return TextEncoder(modules.text_encoder, torch.nn.Identity(), tokenizer, layout.text_layers, 0, cpu)


@pytest.fixture(scope="module", params=LAYOUTS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = LAYOUTS[request.param](tmp_path_factory.mktemp("checkpoint"))
    return made


@pytest.fixture(scope="module")
def ours(directory: Path) -> TextEncoder:
    return encoder(directory)


@pytest.fixture(scope="module")
def stock(directory: Path, ours: TextEncoder) -> Callable[[str], torch.Tensor]:
    """The stock pipeline's embedding [tokens, 3 × hidden] of a prompt, by the whole text encoder."""
    pipeline = DiffusionPipeline.from_pretrained(directory)
    layers, tokens = checkpoint.find(str(directory)).text_layers, ours.tokenizer.tokens_max

    def embedding(prompt: str) -> torch.Tensor:
        with torch.inference_mode():
            encoded = pipeline.encode_prompt(prompt, max_sequence_length=tokens, text_encoder_out_layers=layers)
        whole: torch.Tensor = encoded[0][0]
        return whole

    return embedding


def context(encoder: TextEncoder, prompt: Tokens) -> torch.Tensor:
    return finished(encoder.encode([prompt]))[prompt.ids]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_cut_encoder_equals_whole(prompt: str, ours: TextEncoder, stock: Callable[[str], torch.Tensor]) -> None:
    """Without the layers after the last one read, every hidden state is bit-equal, those of the padding too."""
    assert torch.equal(context(ours, ours.tokenizer.tokenize(prompt)), stock(prompt))


def test_together_equals_alone(ours: TextEncoder) -> None:
    """Prompts encoded in one call are, to the bit, what each is alone, and differ from one another."""
    prompts = [ours.tokenizer.tokenize(prompt) for prompt in PROMPTS]
    together = finished(ours.encode(prompts))
    for prompt in prompts:
        assert torch.equal(together[prompt.ids], context(ours, prompt))
    assert (together[prompts[0].ids] - together[prompts[1].ids]).abs().max() > 0.1


def test_padding_stays(ours: TextEncoder) -> None:
    """Every context has the model's full length; a cut prompt says so."""
    short, long = ours.tokenizer.tokenize(PROMPTS[1]), ours.tokenizer.tokenize(PROMPTS[3])
    assert {len(context(ours, prompt)) for prompt in (short, long)} == {ours.tokenizer.tokens_max}
    assert (short.is_truncated, long.is_truncated) == (False, True)
    assert len(long.ids) == ours.tokenizer.tokens_max < long.count


@pytest.mark.parametrize("words", [1, 20, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 60, 2000])
def test_what_is_appended_stays_whole(words: int, ours: TextEncoder) -> None:
    """However long the prompt, the phrase after it is read whole and what is cut is the prompt; the cut is told."""
    tokenizer, phrase = ours.tokenizer, " on white"
    made = tokenizer.tokenize("circle " * words, phrase)
    assert len(made.ids) <= tokenizer.tokens_max
    text = "".join(tokenizer._tokenizer.decode(made.ids).replace("Ġ", "").split())  # one of them decodes nothing
    empty = tokenizer.tokenize("", phrase)
    if empty.is_truncated:  # the model's own words leave no room
        return
    assert "onwhite" in text
    assert made.is_truncated == (made.count > tokenizer.tokens_max)
    if made.is_truncated:
        assert len(made.ids) > tokenizer.tokens_max - 4  # no more than needed is cut


class Processor(ProcessorMixin):  # type: ignore[misc]
    """The part of FLUX.2's processor that text passes through; the image part would need torchvision."""

    def __init__(self, tokenizer: Any, chat_template: str):
        super().__init__(tokenizer, chat_template=chat_template)


@pytest.mark.parametrize("template", [MISTRAL_TEMPLATE, MISTRAL_TEMPLATE.removeprefix("{{ bos_token }}")])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_processor_and_tokenizer_agree(prompt: str, template: str) -> None:
    """The bare tokenizer gives the ids, padding and mask of the processor that the stock pipeline calls."""
    bare = mistral_tokenizer()
    bare.chat_template = template
    ours = Tokenizer(bare, 64, is_mistral=True)
    ids, mask = ours.padded(ours.tokenize(prompt))
    theirs = Processor(mistral_tokenizer(), template).apply_chat_template(
        format_input([prompt], SYSTEM_MESSAGE), tokenize=True, return_dict=True, return_tensors="pt",
        processor_kwargs={"padding": "max_length", "truncation": True, "max_length": 64},
    )  # fmt: skip
    assert torch.equal(ids, theirs["input_ids"])
    assert torch.equal(mask, theirs["attention_mask"])


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model."])
def test_language_model_is_found_under_any_prefix(prefix: str, tmp_path: Path) -> None:
    """The names that transformers has given a Mistral3's language model over time load the same weights."""
    directory = flux2(tmp_path)
    file = directory / "text_encoder" / "model.safetensors"
    expected = encoder(directory)
    renamed = {k.replace("language_model.model.", prefix): v for k, v in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    prompt = expected.tokenizer.tokenize("a red circle")
    assert torch.equal(context(encoder(directory), prompt), context(expected, prompt))
