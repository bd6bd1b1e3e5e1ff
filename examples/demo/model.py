"""A small Qwen3 with random weights, and a tokenizer trained on the text of this repository.

Both are made afresh whenever the text or this file has changed, and are the same on every machine.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parents[2]

VOCAB_SIZE = 4096
HIDDEN_SIZE = 256
NUM_LAYERS = 4
NUM_HEADS = 4
NUM_KV_HEADS = 2
HEAD_DIM = 64
INTERMEDIATE_SIZE = 768
MAX_MODEL_LEN = 4096
INITIALIZER_RANGE = 0.1
"""At 0.02, as in training, such a model repeats one token; at 0.1 each answer is another."""
SEED = 0

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_TEXT_PATTERNS = (
    "*.md",
    "*.toml",
    "docs/*.md",
    "protos/**/*.proto",
    "protos/wire/*.py",
    "router/**/*.py",
    "engine_service/**/*.py",
    "kernels/**/*.py",
)


def ensure_model(folder: Path) -> bool:
    """Creates the model in `folder`, or leaves it when it is up to date.

    Returns:
        Whether it was created. A folder is either complete or absent, also after an interruption.
    """
    corpus = _corpus()
    fingerprint = _fingerprint(corpus)
    mark = folder / "fingerprint"
    if mark.is_file() and mark.read_text() == fingerprint:
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        vocab_size = _write_tokenizer(unfinished, corpus)
        _write_config(unfinished, vocab_size)
        _write_weights(unfinished, vocab_size)
        (unfinished / "fingerprint").write_text(fingerprint)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return True


def _corpus() -> list[str]:
    paths = {path for pattern in _TEXT_PATTERNS for path in ROOT.glob(pattern)}
    return [path.read_text(encoding="utf-8") for path in sorted(paths)]


def _fingerprint(corpus: list[str]) -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for text in corpus:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _write_tokenizer(folder: Path, corpus: list[str]) -> int:
    """Trains a byte-level BPE; returns the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = [
        AddedToken(content, special=True, normalized=False)
        for content in (END_OF_TEXT, TURN_START, TURN_END)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END,
            "pad_token": END_OF_TEXT,
            "model_max_length": MAX_MODEL_LEN,
            "chat_template": CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
        },
    )
    end_of_text, turn_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(TURN_END)
    _write_json(folder / "generation_config.json", {"eos_token_id": [turn_end, end_of_text]})
    return tokenizer.get_vocab_size()


def _write_config(folder: Path, vocab_size: int) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": NUM_HEADS,
        "num_key_value_heads": NUM_KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_MODEL_LEN,
        "initializer_range": INITIALIZER_RANGE,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "eos_token_id": json.loads((folder / "generation_config.json").read_text())["eos_token_id"][
            0
        ],
    }
    _write_json(folder / "config.json", config)


def _weight_shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab_size, HIDDEN_SIZE),
        "model.norm.weight": (HIDDEN_SIZE,),
        "lm_head.weight": (vocab_size, HIDDEN_SIZE),
    }
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}input_layernorm.weight": (HIDDEN_SIZE,),
            f"{prefix}self_attn.q_proj.weight": (NUM_HEADS * HEAD_DIM, HIDDEN_SIZE),
            f"{prefix}self_attn.k_proj.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
            f"{prefix}self_attn.v_proj.weight": (NUM_KV_HEADS * HEAD_DIM, HIDDEN_SIZE),
            f"{prefix}self_attn.q_norm.weight": (HEAD_DIM,),
            f"{prefix}self_attn.k_norm.weight": (HEAD_DIM,),
            f"{prefix}self_attn.o_proj.weight": (HIDDEN_SIZE, NUM_HEADS * HEAD_DIM),
            f"{prefix}post_attention_layernorm.weight": (HIDDEN_SIZE,),
            f"{prefix}mlp.gate_proj.weight": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
            f"{prefix}mlp.up_proj.weight": (INTERMEDIATE_SIZE, HIDDEN_SIZE),
            f"{prefix}mlp.down_proj.weight": (HIDDEN_SIZE, INTERMEDIATE_SIZE),
        }
    return shapes


def _write_weights(folder: Path, vocab_size: int) -> None:
    """Writes a safetensors file by hand: numpy has no bfloat16, and torch takes a second to load.

    The file is a length, a JSON header with the place of each tensor, and the tensors' bytes.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    header = {}
    chunks = []
    end = 0
    for name, shape in _weight_shapes(vocab_size).items():
        if len(shape) == 1:
            values = np.ones(shape, dtype=np.float32)
        else:
            values = generator.standard_normal(shape, dtype=np.float32) * INITIALIZER_RANGE
        # The upper half of a float32 is the bfloat16 of the same value, rounded towards zero.
        chunk = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        start, end = end, end + len(chunk)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        chunks.append(chunk)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        file.writelines(chunks)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
