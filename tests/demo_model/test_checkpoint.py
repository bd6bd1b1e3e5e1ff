"""The committed model is what it is said to be."""

import json
import math

import transformers
from safetensors import safe_open

from engine_service.models.config import parse_config
from examples.demo.model import CHECKPOINT

CONFIG = json.loads((CHECKPOINT / "config.json").read_text())


def test_model_is_a_small_qwen3_that_the_engine_knows():
    config = parse_config(CONFIG)
    assert config.architecture == "Qwen3ForCausalLM"
    assert config.tie_word_embeddings
    assert config.num_kv_heads < config.num_heads
    assert config.max_sequence_len == 4096
    assert 2000 <= config.vocab_size <= 4096
    assert config.dtype == "bfloat16"


def test_model_has_at_most_6_million_parameters_and_12_megabytes():
    with safe_open(CHECKPOINT / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        assert {one.get_dtype() for one in shapes.values()} == {"BF16"}
        assert sum(math.prod(one.get_shape()) for one in shapes.values()) <= 6_000_000
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 12_000_000


def test_tokenizer_is_lossless_and_ends_turns_with_one_token():
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    messages = [{"role": "user", "content": "héllo 🙂 1234"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nhéllo 🙂 1234<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.eos_token_id) == 1
    assert len(tokenizer) == CONFIG["vocab_size"]
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text())
    assert tokenizer.eos_token_id in generation["eos_token_id"]


def test_tool_calls_are_single_tokens_that_clients_see():
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    for token in ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"):
        (token_id,) = tokenizer(token).input_ids
        assert tokenizer.decode([token_id], skip_special_tokens=True) == token
