"""A byte-level tokenizer of as many entries as Qwen3's, most of them words that no merge makes.

Detokenization sees a vocabulary of full size, as tokens of an engine may be any of its entries;
texts are encoded with the few merges of the tests' tokenizer.
"""

import json
import random
from pathlib import Path

from tests.fakes import small_tokenizer

VOCAB_SIZE = 151_936
WORD_IDS = range(1000, 151_900)
"""Some of those that are one word each, a space before it."""
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SPACE = "\u0120"
"""How byte-level vocabularies write a space."""


def save(folder: Path) -> Path:
    """Writes the files of a checkpoint into a folder, made if it is not there, and returns it."""
    files = small_tokenizer.files()
    tokenizer = json.loads(files["tokenizer.json"])
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    # As everywhere, those that no merge makes and no byte is come after all others.
    added = [token for token in tokenizer["added_tokens"] if token["content"] not in vocabulary]
    for index, token in enumerate(added):
        token["id"] = VOCAB_SIZE - len(added) + index
    rng = random.Random(0)
    while len(vocabulary) < VOCAB_SIZE - len(added):
        word = _SPACE + "".join(rng.choices(_LETTERS, k=rng.randint(3, 8)))
        vocabulary.setdefault(word, len(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    # Some servers will not take a tokenizer without a model's configuration beside it.
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 40_960,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
