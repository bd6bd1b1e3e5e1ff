"""A small byte-level BPE tokenizer with a ChatML template, as the files of a checkpoint."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from router.types.prompts import ChatMessage

START, END, THINK = "<|im_start|>", "<|im_end|>", "<think>"
CHAT_TEMPLATE = """{%- for message in messages %}
{%- if message.role == 'tool' %}{{ raise_exception('tools are not supported') }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
_TEXT = [
    "Pagestream serves large language models over gRPC. A router turns text into token IDs.",
    "introduce yourself", "list all prime numbers within 100", "the quick brown fox",
    "Grüße aus Köln, café, naïve, Ελληνικά, 你好世界, こんにちは, 😀😁🎉👩‍👩‍👧",
]  # fmt: skip


@cache
def files(*, chat_template: str | None = CHAT_TEMPLATE) -> dict[str, bytes]:
    """Returns the files by name; all 256 bytes are tokens, so any bytes can be generated."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[START, END],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT * 3, trainer)
    # Added but not special, as Qwen3's; one with characters outside the byte alphabet.
    tokenizer.add_tokens([AddedToken(THINK, special=False), AddedToken("<ü 字>", special=False)])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def lay_out(messages: Iterable[ChatMessage]) -> str:
    """Returns what `CHAT_TEMPLATE` makes of a conversation."""
    turns = [f"{START}{message.role}\n{message.content}{END}\n" for message in messages]
    return "".join(turns) + f"{START}assistant\n"


def save(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Writes the files into a folder, made if it is not there, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(chat_template=chat_template).items():
        (folder / name).write_bytes(content)
    return folder
