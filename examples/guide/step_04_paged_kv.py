"""Step 4: keys and values in blocks that a sequence takes as it grows, found by a block table.

From step 1: the model, `forward`, `attention`. From step 2: what a token costs.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from examples.guide.step_01_forward import Model, attention, forward, logits_of

LIMITS = (64, 256, 128)
"""The longest answers that the questions below allow, in turn."""


@dataclass
class Sequence:
    """A text that is being computed.

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
        self,
        read: list[tuple[int, Tensor]],
        layer: int,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """Stores the new tokens of several sequences; each reads those of its own.

        Args:
            read: Of each sequence, how many of its tokens are new, and the places of all of them.
            layer: The layer.
            queries: Of the new tokens, one sequence after the other; so are keys and values.
            keys: See above.
            values: See above.
        """
        written = torch.cat([places[-count:] for count, places in read])
        self.memory[layer, 0, written] = keys
        self.memory[layer, 1, written] = values
        results = []
        for (_, places), own in zip(read, queries.split([c for c, _ in read]), strict=True):
            end = len(places)
            may_look = torch.arange(end) <= torch.arange(end - len(own), end)[:, None]
            stored_keys, stored_values = self.memory[layer][:, places]
            results.append(attention(own, stored_keys, stored_values, may_look))
        return torch.cat(results)

    @torch.inference_mode()
    def compute(self, model: Model, rows: list[tuple[Sequence, int]]) -> list[int]:
        """Computes the next tokens of each sequence in one pass, without any padding.

        Args:
            model: The model.
            rows: Each sequence, and how many of its tokens to compute; it has the blocks for them.

        Returns:
            For each row the likeliest token to follow.
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
