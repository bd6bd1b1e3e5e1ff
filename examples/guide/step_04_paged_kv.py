"""Step 4: keys and values in blocks that a sequence takes as it grows, found by a block table.

From step 1: the model, `forward`, `attention`. `fragmentation.py` counts what memory is needed.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from examples.guide.common import END, QUESTIONS, Answers, bar, chat
from examples.guide.fragmentation import memory_needed
from examples.guide.step_01_forward import Model, attention, forward, load, logits_of

Read = list[tuple[int, Tensor]]
"""Of each sequence in a pass, how many of its tokens are new, and the places of all its tokens."""


@dataclass(eq=False)
class Sequence:
    """A text that is being computed; another one with equal tokens is not the same.

    Attributes:
        token_ids: All tokens known, prompt and answer.
        num_computed: How many of them, from the first on, have their keys and values in the cache.
        block_table: Which block holds its first tokens, which the next, and so on.
    """

    token_ids: list[int]
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)


class PagedCache:
    """Keys and values of all sequences: [layers, 2, places, KV heads, head size].

    A block is `block_size` places in a row: block 3 of 16 tokens has the places 48 to 63.
    """

    def __init__(self, model: Model, num_blocks: int, block_size: int = 16) -> None:
        num_places = num_blocks * block_size
        self.memory = torch.empty(
            model.num_layers, 2, num_places, model.num_kv_heads, model.head_size
        )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.free = list(range(num_blocks))

    def blocks_for(self, num_tokens: int) -> int:
        """Returns how many blocks hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Gives a sequence the blocks that it lacks for so many tokens."""
        while len(sequence.block_table) < self.blocks_for(num_tokens):
            sequence.block_table.append(self.take())

    def take(self) -> int:
        """Takes a free block, whichever it is."""
        return self.free.pop()

    def release(self, sequence: Sequence) -> None:
        """Takes the blocks of a sequence back; nothing of it is computed any more."""
        self.free += reversed(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = 0

    def places(self, sequence: Sequence, start: int, end: int) -> Tensor:
        """Returns where the tokens from `start` up to, not including, `end` are stored."""
        positions = torch.arange(start, end)
        blocks = torch.tensor(sequence.block_table)[positions // self.block_size]
        return blocks * self.block_size + positions % self.block_size

    def attend(
        self, read: Read, layer: int, queries: Tensor, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Stores the new tokens, one sequence's after the other's; each reads its own sequence."""
        counts = [count for count, _ in read]
        written = torch.cat([places[-count:] for count, places in read])
        self.memory[layer, 0, written] = keys
        self.memory[layer, 1, written] = values
        results = []
        for own, (count, places) in zip(queries.split(counts), read, strict=True):
            end = len(places)
            may_look = torch.arange(end) <= torch.arange(end - count, end)[:, None]
            stored_keys, stored_values = self.memory[layer][:, places]
            results.append(attention(own, stored_keys, stored_values, may_look))
        return torch.cat(results)

    @torch.inference_mode()
    def compute(self, model: Model, rows: list[tuple[Sequence, int]]) -> list[int]:
        """Computes the next tokens of each sequence, as many as its row says, in one pass.

        It needs the blocks for them. Returns the likeliest token behind the last one of each row.
        """
        spans = [(row, row.num_computed, row.num_computed + count) for row, count in rows]
        tokens = [token for row, start, end in spans for token in row.token_ids[start:end]]
        positions = torch.cat([torch.arange(start, end) for _, start, end in spans])
        read = [(end - start, self.places(row, 0, end)) for row, start, end in spans]
        hidden = forward(model, torch.tensor(tokens), positions, partial(self.attend, read))
        for row, _, end in spans:
            row.num_computed = end
        last = torch.tensor([count for _, count in rows]).cumsum(0) - 1
        return logits_of(model, hidden[last]).argmax(dim=-1).tolist()


def picture(cache: PagedCache, sequences: list[Sequence]) -> str:
    """Returns a letter for each block: A if the first sequence has it, and so on."""
    owners = {block: i for i, sequence in enumerate(sequences) for block in sequence.block_table}
    blocks = range(cache.num_blocks)
    return " ".join(chr(ord("A") + owners[b]) if b in owners else "·" for b in blocks)


def generate(model: Model, cache: PagedCache, prompts: list[list[int]]) -> list[list[int]]:
    """Answers prompts together; each takes blocks as it grows, and gives them back at its end."""
    sequences = [Sequence(list(prompt)) for prompt in prompts]
    running, num_steps = sequences, 0
    while running:
        for sequence in running:
            cache.grow(sequence, len(sequence.token_ids))
        rows = [(row, len(row.token_ids) - row.num_computed) for row in running]
        for (row, _), token in zip(rows, cache.compute(model, rows), strict=True):
            row.token_ids.append(token)
        num_steps += 1
        if num_steps in (1, 20, 40):
            print(f"after {num_steps:>2} steps  {picture(cache, sequences)}")
        for row in running:
            if row.token_ids[-1] == END:
                cache.release(row)
        running = [row for row in running if row.block_table]
    return [row.token_ids[len(prompt) :] for row, prompt in zip(sequences, prompts, strict=True)]


def main() -> Answers:
    """Answers eight questions from pages, then compares how much memory they take."""
    model = load()
    prompts = [chat(question) for question in QUESTIONS]
    answers = generate(model, PagedCache(model, num_blocks=32), prompts)
    print("\nplaces needed for 16 requests at a time:")
    most = memory_needed([*zip(map(len, prompts), map(len, answers), strict=True)])
    for name, places in most.items():
        bar(name, places, max(most.values()), f"{places:,}")
    return {tuple(p): answer for p, answer in zip(prompts, answers, strict=True)}


if __name__ == "__main__":
    main()
