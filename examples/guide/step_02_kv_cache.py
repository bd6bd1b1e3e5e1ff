"""Step 2: keep each layer's keys and values, and compute only the token that is new.

From step 1: the model, `forward`, `attention`.
"""

import torch
from torch import Tensor

from examples.guide.common import END, QUESTIONS, Answers, bar, chat, figure, text_of, timed
from examples.guide.step_01_forward import Model, attention, forward, generate, load, logits_of


class KVCache:
    """The keys and values of one sequence: [layers, 2, max tokens, KV heads, head size].

    Attributes:
        num_tokens: How many tokens it holds.
    """

    def __init__(self, model: Model, max_tokens: int) -> None:
        self.memory = torch.empty(
            model.num_layers, 2, max_tokens, model.num_kv_heads, model.head_size
        )
        self.num_tokens = 0

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Stores the new tokens' keys and values; reads those of all tokens up to now."""
        start, end = self.num_tokens, self.num_tokens + len(keys)
        self.memory[layer, 0, start:end] = keys
        self.memory[layer, 1, start:end] = values
        may_look = torch.arange(end) <= torch.arange(start, end)[:, None]
        stored_keys, stored_values = self.memory[layer, :, :end]
        return attention(queries, stored_keys, stored_values, may_look)

    def extend(self, model: Model, token_ids: list[int]) -> int:
        """Computes the tokens that follow those it holds; returns the likeliest next one."""
        positions = torch.arange(self.num_tokens, self.num_tokens + len(token_ids))
        hidden = forward(model, torch.tensor(token_ids), positions, self.attend)
        self.num_tokens += len(token_ids)
        return int(logits_of(model, hidden[-1:]).argmax())


def generate_cached(model: Model, prompt: list[int], max_tokens: int = 64) -> list[int]:
    """Computes the prompt in one pass (prefill), then one token a pass (decode)."""
    cache = KVCache(model, len(prompt) + max_tokens)
    answer = [cache.extend(model, prompt)]
    while len(answer) < max_tokens and answer[-1] != END:
        answer.append(cache.extend(model, answer[-1:]))
    return answer


def bytes_per_token(model: Model, bytes_per_number: int = 4) -> int:
    """Returns what a token costs in the cache: a key and a value of each KV head and layer."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_size * bytes_per_number


def seconds_of_pass(model: Model, num_stored: int, num_new: int = 1) -> float:
    """Returns how long a pass over new tokens takes behind those that are stored, at best."""
    cache = KVCache(model, num_stored + num_new)
    cache.extend(model, [1] * num_stored)
    seconds = []
    for _ in range(5):
        cache.num_tokens = num_stored  # Forgets those of the pass before.
        seconds.append(timed(cache.extend, model, [1] * num_new)[1])
    return min(seconds)


def draw(label: str, times: dict[int, float]) -> None:
    """Draws seconds, by numbers of tokens."""
    for number, seconds in times.items():
        bar(f"{label} {number:,}", seconds, max(times.values()), f"≈ {seconds * 1000:.1f}")


@torch.inference_mode()
def main() -> Answers:
    """Answers a question without and with the cache; then measures a token behind long texts."""
    model = load()
    prompt = chat(QUESTIONS[1])
    slow, slow_seconds = timed(generate, model, prompt)
    answer, seconds = timed(generate_cached, model, prompt)
    print(text_of(answer))
    computed = sum(range(len(prompt), len(prompt) + len(answer)))
    figure("equal to the answer without a cache", slow == answer)
    figure("tokens computed without a cache", f"{computed:,}")
    figure("tokens computed with it", len(prompt) + len(answer) - 1)
    figure("tokens/s without a cache", f"≈ {len(answer) / slow_seconds:.0f}")
    figure("tokens/s with it", f"≈ {len(answer) / seconds:.0f}")
    figure("bytes of a token in the cache", f"{bytes_per_token(model):,}")

    print("\nms for the next token:")
    draw("after", {length: seconds_of_pass(model, length) for length in (64, 256, 1024)})
    print("\nms for a pass over so many new tokens, after 64:")
    draw("new", {number: seconds_of_pass(model, 64, number) for number in (1, 8, 64)})
    return {tuple(prompt): answer}


if __name__ == "__main__":
    main()
