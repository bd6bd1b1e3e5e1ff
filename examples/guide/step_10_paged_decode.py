"""Step 10: decode attention that reads through block tables, its keys split among many programs.

From step 1: the model. From step 4: blocks and tables, as tensors here. From step 9: `accumulate`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from examples.guide import DEVICE
from examples.guide.common import END, QUESTIONS, Answers, bar, chat, figure, text_of, timed
from examples.guide.step_01_forward import Model, forward, load, logits_of
from examples.guide.step_09_flash_attention import accumulate

BLOCK = 16
BANDWIDTH = 4.8e12
"""Bytes a second from the memory of an H200."""

Read = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(queries [rows, heads, head size], cache [2, blocks, KV heads, BLOCK, head size], block tables
[rows, most blocks], lengths [rows]) -> what each row reads, of the shape of the queries.
"""


def paged_attention(queries: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
    """Each row's attention to the first tokens of its table, which it first copies together."""
    keys, values = cache[:, tables].movedim(3, 2).flatten(3, 4)  # [rows, KV heads, tokens, size]
    grouped = queries.unflatten(1, (keys.shape[1], -1)) / queries.shape[-1] ** 0.5
    is_token = torch.arange(keys.shape[2]) < lengths[:, None, None, None]
    scores = (grouped @ keys.mT).masked_fill(~is_token, float("-inf"))
    return torch.flatten(scores.softmax(-1) @ values, 1, 2)


@triton.jit  # type: ignore[untyped-decorator]
def split_kernel(  # noqa: PLR0913
    queries: tl.tensor, cache: tl.tensor, tables: tl.tensor, lengths: tl.tensor, parts: tl.tensor,
    logs: tl.tensor, half: int, table_width: int, scale: float,
    GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Each program: the query heads of one KV head of one row, and its share of the blocks."""
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads, num_splits = tl.num_programs(1), tl.num_programs(2)
    # `tl.dot` takes 16 rows or more. The others compute nothing that is stored.
    heads, dims, offsets = tl.arange(0, 16), tl.arange(0, SIZE), tl.arange(0, BLOCK)
    is_head = heads[:, None] < GROUP
    heads = ((row * num_kv_heads + kv_head) * GROUP + heads)[:, None]
    query = tl.load(queries + heads * SIZE + dims[None, :], mask=is_head, other=0.0)
    maximum = tl.full([16, 1], float("-inf"), tl.float32)
    total = tl.zeros([16, 1], tl.float32)
    mixed = tl.zeros([16, SIZE], tl.float32)
    length = tl.load(lengths + row)
    share = tl.cdiv(tl.cdiv(length, BLOCK), num_splits) * BLOCK
    for start in range(split * share, tl.minimum((split + 1) * share, length), BLOCK):
        block = tl.load(tables + row * table_width + start // BLOCK)
        sources = ((block * num_kv_heads + kv_head) * BLOCK + offsets[:, None]) * SIZE + dims
        is_token = start + offsets < length
        key = tl.load(cache + sources, mask=is_token[:, None], other=0.0)
        value = tl.load(cache + half + sources, mask=is_token[:, None], other=0.0)
        scores = tl.dot(query, key.T, input_precision="ieee") * scale
        scores = tl.where(is_token[None, :], scores, float("-inf"))
        maximum, total, mixed = accumulate(scores, value, maximum, total, mixed)
    total = tl.maximum(total, 1.0)  # The largest weight is 1: only a split of no tokens has less.
    places = heads * num_splits + split
    tl.store(parts + places * SIZE + dims[None, :], mixed / total, mask=is_head)
    tl.store(logs + places, maximum + tl.log(total), mask=is_head)


def split_attention(queries: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor) -> Tensor:
    """As `paged_attention`, by the kernel. Contiguous tensors; groups of up to 16 heads."""
    queries, cache, tables, lengths = (x.to(DEVICE) for x in (queries, cache, tables, lengths))
    (num_rows, num_heads, size), num_kv_heads, num_splits = queries.shape, cache.shape[2], 4
    parts = torch.empty(num_rows, num_heads, num_splits, size, device=DEVICE)
    logs = torch.empty(num_rows, num_heads, num_splits, 1, device=DEVICE)
    split_kernel[num_rows, num_kv_heads, num_splits](
        queries, cache, tables, lengths, parts, logs, cache.stride(0), tables.stride(0),
        size**-0.5, GROUP=num_heads // num_kv_heads, SIZE=size, BLOCK=BLOCK,
    )  # fmt: skip
    return (parts * logs.softmax(2)).sum(2).cpu()


@dataclass(frozen=True)
class Pages:
    """The blocks of all sequences: memory [layers, 2, blocks, KV heads, BLOCK, head size]."""

    model: Model
    memory: Tensor
    read: Read

    def compute(self, tables: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
        """Computes one token of each row; returns the likeliest next ones, [rows]."""
        blocks = tables.gather(1, positions[:, None] // BLOCK).squeeze(1)

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            self.memory[layer, 0, blocks, :, positions % BLOCK] = keys
            self.memory[layer, 1, blocks, :, positions % BLOCK] = values
            return self.read(queries, self.memory[layer], tables, positions + 1)

        hidden = forward(self.model, token_ids, positions, attend)
        return logits_of(self.model, hidden).argmax(-1)


@torch.inference_mode()
def main() -> Answers:
    """Answers four questions side by side; then the arithmetic of a decode step."""
    torch.set_num_threads(1)  # A step is too short for threads to wait for each other.
    model, prompts = load(), [chat(question) for question in QUESTIONS[2:6]]
    tables = torch.randperm(32).view(4, 8)  # Any blocks, in any order.
    shape = model.num_layers, 2, 32, model.num_kv_heads, BLOCK, model.head_size
    pages = Pages(model, torch.zeros(shape), paged_attention)
    answers, fastest = list[list[int]](), float("inf")
    for prompt, table in zip(prompts, tables, strict=True):
        # Each token of a prompt is a row too, and all have the same table.
        rows = table.expand(len(prompt), -1), torch.arange(len(prompt)), torch.tensor(prompt)
        answers.append([int(pages.compute(*rows)[-1])])
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    while not all(END in answer for answer in answers):
        newest = torch.tensor([answer[-1] for answer in answers])
        next_ids, seconds = timed(pages.compute, tables, lengths, newest)
        lengths, fastest = lengths + 1, min(fastest, seconds)
        for answer, token_id in zip(answers, next_ids.tolist(), strict=True):
            answer.extend([] if END in answer else [token_id])
    print("\n".join(map(text_of, answers)))

    inputs = torch.randn(2, 8, 32), pages.memory[0], tables[:2], lengths[:2]
    same = torch.allclose(split_attention(*inputs), paged_attention(*inputs), atol=1e-5)
    figure("the kernel equals torch", same)
    figure("it ran", f"≈ {'on a GPU' if DEVICE == 'cuda' else 'interpreted, on a CPU'}")
    print("\nQwen3-8B on an H200, texts of 4,096 tokens, ms a step for weights + keys and values:")
    for num_texts in (1, 8, 64):
        weights = 15.14e9 / BANDWIDTH * 1000
        cached = num_texts * 4096 * 147_456 / BANDWIDTH * 1000
        bar(f"{num_texts} text(s)", weights + cached, 12, f"{weights:.1f} + {cached:.1f}")
    print("\none of its texts in one layer, tokens that a program reads one after the other:")
    for num_splits in (1, 4, 16):
        bar(f"{8 * num_splits} programs", 1 / num_splits, 1, f"{4096 // num_splits:,}")
    num_bytes = 4 * sum(weight.numel() for weight in model.weights.values())
    figure("\nbytes of the demo model's weights", f"{num_bytes:,}")
    figure("an H200 reads them in", f"{num_bytes / BANDWIDTH * 1e6:.1f} µs")
    figure("a decode step took here", f"≈ {fastest * 1e6:,.0f} µs")
    return {tuple(prompt): answer for prompt, answer in zip(prompts, answers, strict=True)}


if __name__ == "__main__":
    main()
