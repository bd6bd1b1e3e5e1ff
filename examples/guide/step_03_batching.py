"""Step 3: several texts in one pass, filled up to equal lengths; and how much of it is filling.

From step 1: the model, `forward`, `attention`.
"""

from functools import partial

import torch
from torch import Tensor

from examples.guide.common import END, QUESTIONS, Answers, bar, chat, figure, timed
from examples.guide.step_01_forward import Model, attention, forward, load, logits_of

PADDING = 0
"""Any token will do: nothing ever looks at one that fills a row up."""
MAX_TOKENS = 64
"""The longest answer that there is memory for."""


class BatchCache:
    """The keys and values of a batch: [layers, 2, rows, max tokens, KV heads, head size]."""

    def __init__(self, model: Model, num_rows: int, max_tokens: int) -> None:
        # Not `empty`: rows read past their end with a weight of 0, and 0 times NaN is NaN.
        self.memory = torch.zeros(
            model.num_layers, 2, num_rows, max_tokens, model.num_kv_heads, model.head_size
        )

    def attend(
        self, positions: Tensor, layer: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Stores the new tokens of all rows; each reads its own row up to its own place.

        Args:
            positions: [rows, new tokens of each].
            layer: The layer.
            queries: [rows * new tokens, query heads, head size]; keys and values alike.
            keys: See above.
            values: See above.
        """
        rows, end = torch.arange(len(positions))[:, None], int(positions.max()) + 1
        self.memory[layer, 0, rows, positions] = keys.unflatten(0, positions.shape)
        self.memory[layer, 1, rows, positions] = values.unflatten(0, positions.shape)
        may_look = torch.arange(end) <= positions[:, :, None]  # [rows, new tokens, all tokens]
        stored_keys, stored_values = self.memory[layer, :, :, :end]
        # The same attention as before, for each row by itself.
        attend = torch.vmap(attention)
        queries = queries.unflatten(0, positions.shape)
        return attend(queries, stored_keys, stored_values, may_look).flatten(0, 1)

    def extend(self, model: Model, tokens: Tensor, positions: Tensor) -> Tensor:
        """Computes [rows, new tokens]; returns the last layer's output of each token."""
        attend = partial(self.attend, positions)
        hidden = forward(model, tokens.flatten(), positions.flatten(), attend)
        return hidden.view(*tokens.shape, -1)


def generate_batch(model: Model, cache: BatchCache, prompts: list[list[int]]) -> list[list[int]]:
    """Answers all prompts together; the batch ends with its longest answer.

    Args:
        model: The model.
        cache: Has a row for each prompt, long enough for the longest one and its answer.
        prompts: Tokens.
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest, rows = int(lengths.max()), torch.arange(len(prompts))
    padded = [prompt + [PADDING] * (longest - len(prompt)) for prompt in prompts]
    positions = torch.arange(longest).expand(len(prompts), -1)
    hidden = cache.extend(model, torch.tensor(padded), positions)[rows, lengths - 1]
    answers: list[list[int]] = [[] for _ in prompts]
    while True:
        tokens = logits_of(model, hidden).argmax(dim=-1)
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            if END not in answer:
                answer.append(token)
        if all(END in answer for answer in answers):
            return answers
        # A row's first new token takes the place of its first padding, and so on. Rows that have
        # ended are computed like the others; what they give is dropped.
        hidden = cache.extend(model, tokens[:, None], lengths[:, None])[:, 0]
        lengths = lengths + 1


def draw(prompts: list[list[int]], answers: list[list[int]]) -> None:
    """Prints a batch as it is computed, a column for each token of each row."""
    widest = max(map(len, prompts))
    longest = max(map(len, answers)) - 1  # The last token of an answer is never computed.
    for prompt, answer in zip(prompts, answers, strict=True):
        left = ("▒" * len(prompt)).ljust(widest, "·")
        print(left + ("█" * (len(answer) - 1)).ljust(longest, "·"))


def padded_share(prompts: list[list[int]], answers: list[list[int]], batch_size: int) -> float:
    """Returns which share of the computed tokens is padding, if these are answered in batches."""
    computed = 0
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        length = max(map(len, prompts[batch])) + max(map(len, answers[batch])) - 1
        computed += len(prompts[batch]) * length
    return 1 - sum(len(p) + len(a) - 1 for p, a in zip(prompts, answers, strict=True)) / computed


def answer_all(model: Model, prompts: list[list[int]], batch_size: int) -> list[list[int]]:
    """Answers prompts in batches, one after the other."""
    answers = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        cache = BatchCache(model, len(batch), max(map(len, batch)) + MAX_TOKENS)
        answers += generate_batch(model, cache, batch)
    return answers


@torch.inference_mode()
def main() -> Answers:
    """Answers eight questions in batches of several sizes."""
    model = load()
    prompts = [chat(question) for question in QUESTIONS]
    rates = {}
    for batch_size in (1, 4, 8):
        answers, seconds = timed(answer_all, model, prompts, batch_size)
        rates[batch_size] = sum(map(len, answers)) / seconds

    print("a batch of 8: ▒ prompt, █ answer, · padding")
    draw(prompts, answers)
    print()
    for batch_size in rates:
        share = padded_share(prompts, answers, batch_size)
        figure(f"padding in batches of {batch_size}", f"{share:.0%}")
    reserved = len(prompts) * (max(map(len, prompts)) + MAX_TOKENS)
    figure("the batch of 8 reserves memory for tokens", reserved)
    used = sum(len(p) + len(a) - 1 for p, a in zip(prompts, answers, strict=True))
    figure("tokens that are stored in the end", used)
    print("\ntokens/s of answers:")
    for batch_size, rate in rates.items():
        bar(f"batches of {batch_size}", rate, max(rates.values()), f"≈ {rate:.0f}")
    return {tuple(p): answer for p, answer in zip(prompts, answers, strict=True)}


if __name__ == "__main__":
    main()
