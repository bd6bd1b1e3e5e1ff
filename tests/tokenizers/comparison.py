"""What the router makes of one tokenizer, compared with what transformers makes of it."""

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from router.text import detokenizer
from router.text.tokenizer import Tokenizer

TEXTS = (
    "",
    " ",
    "Hello world",
    " leading",
    "  two  spaces  ",
    "trailing ",
    "one\ntwo\n\n\n  three\r\n\tfour\n",
    "\n",
    "def f(x):\n    return x  # 12345678\n",
    "don't DON'T we'LL a_b.c(d)[e]",
    "Grüße aus Köln, café cafe\u0301 Ελληνικά русский",
    "你好\uff0c世界。こんにちは 한국어",
    "😀😁🎉 👩‍👩‍👧 🇩🇪 a😀b",
    "\u2581lit\u2581\u2581 <0x0A> <0xE2>",
    " \u00a0\u3000x\u2028y\u200b",
    "\x00\x07\ufffd\ufffe\U0010fffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                ",
    "<s>a</s> b [INST] c [/INST]<bos><start_of_turn>user\nhi<end_of_turn>",
    "<|im_start|>user\nhi<|im_end|><|begin_of_text|><|eot_id|>",
    'ab {"name": "f", "parameters": {"x": [1, 2.5, null]}}',
    "ﬁ ① Å ² İi",
)
_MAX_SPLIT = 24
"""Tokens of a sequence of which all pairs of parts are pushed."""
_NUM_RANDOM = 60
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(slots=True)
class Outcome:
    """What was compared.

    Attributes:
        num_texts: Texts that were encoded.
        num_sequences: Sequences of tokens that were decoded in parts.
        num_splits: The ways in which they were split.
        differences: What was not as transformers has it, one line each.
    """

    num_texts: int = 0
    num_sequences: int = 0
    num_splits: int = 0
    differences: list[str] = field(default_factory=list)

    def expect(self, what: str, got: object, wanted: object) -> None:
        """Notes a difference."""
        if got != wanted:
            self.differences.append(f"{what}: {got!r:.200}, transformers has {wanted!r:.200}")


def load(files: Mapping[str, bytes]) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """Loads a tokenizer from its files by name, as the router does and as transformers does."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        reference = AutoTokenizer.from_pretrained(folder)
    return Tokenizer.from_files(files), reference


def compare(files: Mapping[str, bytes], seed: int = 0) -> Outcome:
    """Compares encoding and decoding of a tokenizer."""
    ours, reference = load(files)
    outcome = Outcome()
    for text in TEXTS:
        outcome.num_texts += 1
        _compare_encoding(outcome, ours, reference, text)
    chance = random.Random(seed)
    prompts = [ours.encode_text(text).tolist() for text in ("Hello", "a b\n", "x 😀", "é ")]
    for token_ids in _sequences(ours, chance):
        outcome.num_sequences += 1
        _compare_stream(outcome, ours, reference, token_ids)
        _compare_answer(outcome, ours, reference, chance.choice(prompts), token_ids)
    for text in TEXTS:
        token_ids = ours.encode_text(text).tolist()
        for cut in range(1, min(len(token_ids), _MAX_SPLIT)):
            _compare_answer(outcome, ours, reference, token_ids[:cut], token_ids[cut:])
    return outcome


def _compare_encoding(
    outcome: Outcome, ours: Tokenizer, reference: PreTrainedTokenizerFast, text: str
) -> None:
    with_ends = reference(text).input_ids
    bare = reference(text, add_special_tokens=False).input_ids
    outcome.expect(f"tokens of {text!r}", ours.encode_text(text).tolist(), with_ends)
    got = ours.encode_text(text, add_special_tokens=False).tolist()
    outcome.expect(f"tokens of {text!r} alone", got, bare)
    outcome.expect(f"tokens of {text!r} in a chat", ours.encode_rendered(text, "").tolist(), bare)
    for skip in (False, True):
        got_text = ours.decode(with_ends, skip_special_tokens=skip)
        wanted = reference.decode(with_ends, skip_special_tokens=skip)
        outcome.expect(f"text of {with_ends}", got_text, wanted)
    _compare_protected(outcome, ours, reference, text)


def _compare_protected(
    outcome: Outcome, ours: Tokenizer, reference: PreTrainedTokenizerFast, text: str
) -> None:
    """A special token that a client wrote changes no token of what stands before it."""
    special = [
        token.content
        for token in ours.backend.get_added_tokens_decoder().values()
        # What is unknown becomes that token, too.
        if token.special and token.content != reference.unk_token
    ]
    if not special or any(token in text for token in special):
        return
    first, last = special[0], special[-1]
    before = f"{first}{text}{last}{text}\nx{first}"
    marker = "\ue000"
    got = ours.encode_rendered(f"{before}{marker}{last}y", marker).tolist()
    wanted = reference(before, add_special_tokens=False).input_ids
    outcome.expect(f"tokens of {before!r} before a forgery", got[: len(wanted)], wanted)
    rest = got[len(wanted) :]
    is_forged = reference.convert_tokens_to_ids(last) in rest
    outcome.expect(f"whether {last!r} is forged behind {before!r}", is_forged, False)


def _sequences(ours: Tokenizer, chance: random.Random) -> Iterator[list[int]]:
    """Yields token IDs: those of the texts, their parts, and any, some of them unknown."""
    size = ours.backend.get_vocab_size()
    added = list(ours.backend.get_added_tokens_decoder())[:50]
    single = [
        token_id
        for name in ("▁", "▁▁", " ", "\n", "Ġ", "Ċ", "a", "<0x0A>", "<0x20>", "<0xE2>", "<0xF0>")
        if (token_id := ours.backend.token_to_id(name)) is not None
    ]
    for text in TEXTS:
        token_ids = ours.encode_text(text, add_special_tokens=False).tolist()
        yield token_ids
        yield token_ids[1:]
        yield ours.encode_text(text).tolist()
    known = [token_id for text in TEXTS for token_id in ours.encode_text(text)]
    for _ in range(_NUM_RANDOM):
        pools = (known, range(size + 2), added or known, single or known)
        yield [
            chance.choice(chance.choices(pools, (6, 2, 1, 2))[0])
            for _ in range(chance.randint(1, _MAX_SPLIT))
        ]


def _compare_stream(
    outcome: Outcome, ours: Tokenizer, reference: PreTrainedTokenizerFast, token_ids: Sequence[int]
) -> None:
    known = [token_id for token_id in token_ids if ours.backend.id_to_token(token_id) is not None]
    whole = reference.decode(known, skip_special_tokens=True)
    stream = _start(ours, [])
    told = ""
    for number, token_id in enumerate(token_ids, 1):
        told += stream.push([token_id])
        at_once = reference.decode(
            [one for one in token_ids[:number] if ours.backend.id_to_token(one) is not None],
            skip_special_tokens=True,
        )
        if not whole.startswith(told):
            outcome.expect(
                f"text of {list(token_ids[:number])} of {list(token_ids)}", told, at_once
            )
            return
        # What may still change: a character of several tokens, and a run of byte tokens.
        if not at_once.endswith(_REPLACEMENT) and not _ends_in_bytes(ours, token_ids[:number]):
            outcome.expect(f"text after {list(token_ids[:number])}", told, at_once)
    outcome.num_splits += 1
    outcome.expect(f"text of {list(token_ids)} one by one", told + stream.flush(), whole)
    for cut in range(min(len(token_ids), _MAX_SPLIT) + 1):
        stream = _start(ours, [])
        text = stream.push(token_ids[:cut]) + stream.push(token_ids[cut:]) + stream.flush()
        outcome.num_splits += 1
        outcome.expect(f"text of {list(token_ids)} cut at {cut}", text, whole)


def _compare_answer(
    outcome: Outcome,
    ours: Tokenizer,
    reference: PreTrainedTokenizerFast,
    prompt: Sequence[int],
    token_ids: Sequence[int],
) -> None:
    known = [token_id for token_id in token_ids if ours.backend.id_to_token(token_id) is not None]
    before = reference.decode(list(prompt), skip_special_tokens=True)
    whole = reference.decode([*prompt, *known], skip_special_tokens=True)
    if not whole.startswith(before) or before.endswith(_REPLACEMENT):
        # The prompt ends within a character.
        return
    for size in (1, 3, len(token_ids) + 1):
        stream = _start(ours, prompt)
        parts = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
        text = "".join(map(stream.push, parts)) + stream.flush()
        outcome.num_splits += 1
        outcome.expect(
            f"text of {list(token_ids)} behind {list(prompt)}", text, whole[len(before) :]
        )


def _start(ours: Tokenizer, prompt: Sequence[int]) -> detokenizer.Detokenizer:
    return detokenizer.start(ours.backend, ours.token_bytes, pieces=ours.pieces, prompt=prompt)


def _ends_in_bytes(ours: Tokenizer, token_ids: Sequence[int]) -> bool:
    """Whether the last token that the decoder sees stands for a byte."""
    if ours.pieces is None:
        return False
    seen = [piece for token_id in token_ids if (piece := ours.pieces[token_id]) is not None]
    return bool(seen) and seen[-1].byte is not None
