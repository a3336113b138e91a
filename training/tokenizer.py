"""A Qwen2 tokenizer whose vocabulary is learnt from the captions. Knows no pictures."""

import json
from pathlib import Path
from random import Random

from tokenizers import AddedToken
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import Qwen2TokenizerFast

from training.mixture import example

TOKENS_MAX = 40
VOCABULARY = 1024
END, PAD = "<|im_end|>", "<|endoftext|>"
# Words without case, punctuation and double spaces, each with its leading space; enable_thinking adds nothing.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set words = message['content'] | lower | replace('.', ' ') | replace(',', ' ') | replace('!', ' ')"
    " | replace('?', ' ') | replace(';', ' ') | replace(':', ' ') | replace('\"', ' ') | replace('-', ' ') -%}"
    "{{- ' ' + words.split() | join(' ') -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt or enable_thinking is defined -%}<|im_end|>{%- endif -%}"
)


def captions(count: int, seed: int = 0) -> list[str]:
    random = Random(seed)
    return [example(random, random.choices((0, 1, 2, 3, 4), (6, 5, 1, 1, 1))[0], (64, 64)).prompt for _ in range(count)]


def build(seed: int = 0) -> Qwen2TokenizerFast:
    """The tokenizer: byte-level BPE over the captions' words, every byte known, so no text is refused."""
    blank = Qwen2TokenizerFast(vocab={PAD: 0}, merges=[])
    learner = blank._tokenizer
    learner.model = BPE()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        special_tokens=[PAD, END],
        min_frequency=20,
    )
    texts = [
        " " + " ".join(c.lower().replace(",", " ").replace(".", " ").replace("!", " ").split())
        for c in captions(40000, seed)
    ]
    learner.train_from_iterator(texts, trainer)
    state = json.loads(learner.to_str())["model"]
    tokenizer = Qwen2TokenizerFast(
        vocab=state["vocab"],
        merges=[tuple(m) for m in state["merges"]],
        pad_token=PAD,
        eos_token=END,
        unk_token=PAD,
        model_max_length=TOKENS_MAX,
        padding_side="right",
    )
    tokenizer.add_tokens([AddedToken(END, special=True)])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def kept(directory: Path) -> Qwen2TokenizerFast:
    """The tokenizer of an earlier run, whose weights fit no other; built and kept when there is none."""
    if not directory.exists():
        build().save_pretrained(directory)
    return Qwen2TokenizerFast.from_pretrained(directory)


def texts(tokenizer: Qwen2TokenizerFast, prompts: list[str]) -> list[str]:
    """The prompts through the chat template, exactly as the stock pipeline calls it."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for p in prompts
    ]


def encode(tokenizer: Qwen2TokenizerFast, prompts: list[str]):
    """input_ids and attention_mask [B, TOKENS_MAX], padded right as the stock pipeline pads."""
    return tokenizer(
        texts(tokenizer, prompts),
        return_tensors="pt",
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
    )
