"""Converts a tokenizer's file to tokenizer.json, in an environment that has what this needs.

python convert.py FORM FILE FOLDER MODEL_TYPE [SPECIAL_TOKEN ...]
"""

import json
import shutil
import sys
from pathlib import Path

from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.integrations.mistral.tokenizer import MistralConverter

_DIGITS = {"qwen2": r"\p{N}", "llama": r"\p{N}{1,3}"}
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONFIG = {"bos_token": "<s>", "eos_token": "</s>"}


def main(form: str, file: str, target: str, model_type: str, *special: str) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    folder = Path(target)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **_CONFIG}
    if form == "sentencepiece":
        # What the engine's refusal of such a folder says, with the usual settings of its models.
        shutil.copy(file, folder / "tokenizer.model")
        config |= {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>"}
        config |= {"add_bos_token": True, "add_eos_token": False, "legacy": file.endswith("v1")}
        _write(folder / "tokenizer_config.json", config)
        _write(folder / "config.json", {"model_type": model_type})
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
        return
    if form == "tekken":
        converter = MistralConverter(file)
    else:
        converter = TikTokenConverter(
            file, pattern=_PATTERN % _DIGITS[model_type], extra_special_tokens=list(special)
        )
        config |= {"bos_token": special[0], "eos_token": special[-1]}
    converter.converted().save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", config)


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content))


if __name__ == "__main__":
    main(*sys.argv[1:])
