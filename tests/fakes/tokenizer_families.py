"""Small tokenizers of well-known families, each as the files of a checkpoint.

They have the parts that the families' own files have, and a vocabulary learned from a few lines.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

_LINES = [
    "Pagestream serves large language models over gRPC. A router turns text into token IDs.",
    "Hello world, the quick brown fox jumps over the lazy dog; don't they?",
    "def f(x):\n    return x  # one two three 123456\n\n\n",
    "[INST] introduce yourself [/INST] user assistant system model tool call result",
    "Grüße aus Köln, café, naïve, Ελληνικά, 你好世界, こんにちは, 한국어",
]  # fmt: skip
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE = "▁"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _fallback(special: Sequence[str], *, has_prefix: bool) -> Tokenizer:
    """A model of SentencePiece with byte fallback, without what is done before and after it."""
    learned = Tokenizer(models.BPE(unk_token="<unk>"))
    learned.normalizer = normalizers.Replace(" ", _SPACE)
    learned.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>", *special, *_BYTES],
        limit_alphabet=60,
        show_progress=False,
    )
    learned.train_from_iterator([f" {line}" for line in _LINES * 3], trainer)
    settings = json.loads(learned.to_str())["model"]
    backend = Tokenizer(
        models.BPE(
            vocab=settings["vocab"],
            merges=[tuple(merge) for merge in settings["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if has_prefix:
        parts.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(parts)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    _begin_with(backend, special[0])
    return backend


def _begin_with(backend: Tokenizer, token: str) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, backend.token_to_id(token))]
    )


def _llama_2() -> Tokenizer:
    backend = _fallback(["<s>", "</s>"], has_prefix=True)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    return backend


def _metaspace(scheme: str) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        special = ["<s>", "</s>", "[INST]", "[/INST]"]
        backend = _fallback(special, has_prefix=scheme != "never")
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme=scheme, split=False
        )
        return backend

    return make


def _gemma() -> Tokenizer:
    backend = _fallback(["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], has_prefix=False)
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    # Gemma's file adds its runs of spaces and line ends, which are not special.
    runs = ["\n\n", "\n\n\n", _SPACE * 2, _SPACE * 4]
    backend.add_tokens([AddedToken(run, normalized=False) for run in runs])
    return backend


def _unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(_LINES * 3, trainer)
    backend.decoder = decoders.Metaspace()
    _begin_with(backend, "<s>")
    return backend


def _byte_level(pattern: str, special: Sequence[str]) -> Tokenizer:
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    backend.train_from_iterator(_LINES * 3, trainer)
    return backend


def _llama_3() -> Tokenizer:
    names = ("begin_of_text", "start_header_id", "end_header_id", "eot_id")
    special = [f"<|{name}|>" for name in names]
    backend = _byte_level(_LLAMA_3, special)
    begin = processors.TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], backend.token_to_id(special[0]))]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return backend


def _tekken() -> Tokenizer:
    backend = _byte_level(_TEKKEN, ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"])
    _begin_with(backend, "<s>")
    return backend


def _fused_byte_level() -> Tokenizer:
    backend = _llama_3()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return backend


_FAMILIES: dict[str, tuple[Callable[[], Tokenizer], str, str]] = {
    "llama-2": (_llama_2, "LlamaTokenizer", "llama"),
    "mistral-1": (_llama_2, "LlamaTokenizer", "mistral"),
    "mistral-3": (_metaspace("first"), "LlamaTokenizer", "mistral"),
    "metaspace-always": (_metaspace("always"), "PreTrainedTokenizerFast", "mistral"),
    "metaspace-never": (_metaspace("never"), "PreTrainedTokenizerFast", "mistral"),
    "gemma": (_gemma, "GemmaTokenizer", "gemma3_text"),
    "unigram": (_unigram, "PreTrainedTokenizerFast", "mistral"),
    "llama-3": (_llama_3, "PreTrainedTokenizerFast", "llama"),
    "tekken": (_tekken, "PreTrainedTokenizerFast", "mistral"),
    "fused-byte-level": (_fused_byte_level, "PreTrainedTokenizerFast", "llama"),
}
FAMILIES = tuple(_FAMILIES)


@cache
def files(family: str, *, chat_template: str | None = None) -> dict[str, bytes]:
    """Returns the files of one of `FAMILIES` by name, config.json among them."""
    make, tokenizer_class, model_type = _FAMILIES[family]
    backend = make()
    special = [token.content for token in backend.get_added_tokens_decoder().values()]
    begin = next(token for token in special if token in ("<s>", "<bos>", "<|begin_of_text|>"))
    end = next(token for token in special if token in ("</s>", "<eos>", "<|eot_id|>"))
    config = {"tokenizer_class": tokenizer_class, "bos_token": begin, "eos_token": end}
    if "<unk>" in special:
        config["unk_token"] = "<unk>"
    if chat_template is not None:
        config["chat_template"] = chat_template
    return {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "config.json": json.dumps({"model_type": model_type}).encode(),
    }
