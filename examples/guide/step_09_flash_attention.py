"""Step 9: attention tile by tile, without the matrix of all scores: first in torch, then in Triton.

From step 1: the model and the attention to compare with. Without a GPU, Triton interprets.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.overrides import TorchFunctionMode

from examples.guide import DEVICE
from examples.guide.common import END, QUESTIONS, Answers, bar, chat, figure, text_of, timed
from examples.guide.step_01_forward import attend_to_these, forward, load, logits_of

TILE = 64

State = tuple[Tensor, Tensor, Tensor]
"""Of each row: the largest score up to now, the sum of weights, the weighted sum of values."""


def add_tile(scores: Tensor, values: Tensor, state: State) -> State:
    """Adds some keys to a softmax: scores [heads, rows, keys], values [heads, keys, head size]."""
    maximum, total, mixed = state
    new_maximum = torch.maximum(maximum, scores.amax(-1, keepdim=True))
    correction = (maximum - new_maximum).exp()
    weights = (scores - new_maximum).exp()
    total = total * correction + weights.sum(-1, keepdim=True)
    mixed = mixed * correction + weights @ values
    return new_maximum, total, mixed


def tiled_attention(_: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """As `attend_to_these` of step 1: all tokens are here, each sees those before it."""
    group = queries.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(group, dim=1).movedim(1, 0) for part in (keys, values))
    queries = queries.movedim(1, 0) / queries.shape[-1] ** 0.5  # all [heads, tokens, head size]
    places, results = torch.arange(queries.shape[1]), []
    for first in range(0, len(places), TILE):
        rows = slice(first, first + TILE)
        mixed = torch.zeros_like(queries[:, rows])
        state = mixed[..., :1] - float("inf"), mixed[..., :1], mixed
        for start in range(0, first + TILE, TILE):  # No row here sees a later tile.
            tokens = slice(start, start + TILE)
            scores = queries[:, rows] @ keys[:, tokens].mT
            is_later = places[tokens] > places[rows, None]
            state = add_tile(scores.masked_fill(is_later, float("-inf")), values[:, tokens], state)
        results.append(state[2] / state[1])
    return torch.cat(results, dim=1).movedim(0, 1)


@triton.jit  # type: ignore[untyped-decorator]
def accumulate(
    scores: tl.tensor, value: tl.tensor, maximum: tl.tensor, total: tl.tensor, mixed: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """As `add_tile`, for one head."""
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1, keep_dims=True))
    correction = tl.exp(maximum - new_maximum)
    weights = tl.exp(scores - new_maximum)
    total = total * correction + tl.sum(weights, axis=1, keep_dims=True)
    mixed = tl.dot(weights, value, mixed * correction, input_precision="ieee")
    return new_maximum, total, mixed


@triton.jit  # type: ignore[untyped-decorator]
def attention_kernel(  # noqa: PLR0913
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, out: tl.tensor, num_tokens: int,
    scale: float, GROUP: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
) -> None:  # fmt: skip
    """Each program computes TILE rows of one head."""
    first, head, num_heads = tl.program_id(0) * TILE, tl.program_id(1), tl.num_programs(1)
    rows, dims = first + tl.arange(0, TILE), tl.arange(0, SIZE)
    places = (rows[:, None] * num_heads + head) * SIZE + dims[None, :]
    query = tl.load(queries + places, mask=rows[:, None] < num_tokens, other=0.0)
    maximum = tl.full([TILE, 1], float("-inf"), tl.float32)
    total = tl.zeros([TILE, 1], tl.float32)
    mixed = tl.zeros([TILE, SIZE], tl.float32)
    for start in range(0, first + TILE, TILE):
        tokens = start + tl.arange(0, TILE)
        sources = (tokens[:, None] * (num_heads // GROUP) + head // GROUP) * SIZE + dims[None, :]
        key = tl.load(keys + sources, mask=tokens[:, None] < num_tokens, other=0.0)
        value = tl.load(values + sources, mask=tokens[:, None] < num_tokens, other=0.0)
        scores = tl.dot(query, key.T, input_precision="ieee") * scale
        scores = tl.where(tokens[None, :] > rows[:, None], float("-inf"), scores)
        maximum, total, mixed = accumulate(scores, value, maximum, total, mixed)
    tl.store(out + places, mixed / total, mask=rows[:, None] < num_tokens)


def kernel_attention(_: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """The same by the kernel, for contiguous tensors in float32."""
    num_tokens, num_heads, size = queries.shape
    queries, keys, values = (part.to(DEVICE) for part in (queries, keys, values))
    out = torch.empty_like(queries)
    attention_kernel[triton.cdiv(num_tokens, TILE), num_heads](
        queries, keys, values, out, num_tokens, size**-0.5,
        GROUP=num_heads // keys.shape[1], SIZE=size, TILE=TILE,
    )  # fmt: skip
    return out.cpu()


class LargestTensor(TorchFunctionMode):
    """Notes the bytes of the largest tensor that any of torch's functions returns."""

    num_bytes = 0

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        self.num_bytes = max(self.num_bytes, getattr(result, "nbytes", 0))
        return result


@torch.inference_mode()
def main() -> Answers:
    """Answers by tiles; compares memory, time and results; draws which tiles are computed."""
    torch.set_num_threads(1)  # The times are to compare memory, not threads that wait.
    model, prompt = load(), chat(QUESTIONS[3])
    answer: list[int] = []
    while answer[-1:] != [END]:
        token_ids = torch.tensor(prompt + answer)
        hidden = forward(model, token_ids, torch.arange(len(token_ids)), tiled_attention)
        answer.append(int(logits_of(model, hidden[-1:]).argmax()))
    print(f"{text_of(answer)}\n\nbytes of the largest tensor of one layer:")
    times = {}
    for num_tokens in (256, 512, 1024):
        text = torch.randn(num_tokens, 8, 32), *torch.randn(2, num_tokens, 4, 32)
        for name, attend in {"matrix": attend_to_these, "tiles": tiled_attention}.items():
            with LargestTensor() as seen:
                _, times[name] = timed(attend, 0, *text)
            bar(f"{num_tokens:,} {name}", seen.num_bytes, 2**25, f"{seen.num_bytes:,}")
    print(f"\ntiles of {8 * TILE} tokens (██ seen, ▒▒ seen in part, ·· left out):")
    for row in range(8):
        print("  " + "██" * row + "▒▒" + "··" * (7 - row))
    print()
    for name, seconds in times.items():
        figure(f"time for 1,024 tokens, {name}", f"≈ {seconds * 1000:.0f} ms")
    text = torch.randn(100, 2, 32), *torch.randn(2, 100, 1, 32)
    same = torch.allclose(kernel_attention(0, *text), attend_to_these(0, *text), atol=1e-5)
    figure("the kernel equals step 1's attention", same)
    figure("it ran", f"≈ {'on a GPU' if DEVICE == 'cuda' else 'interpreted, on a CPU'}")
    figure("programs for 1,024 tokens, 8 heads", triton.cdiv(1024, TILE) * 8)
    figure("programs for one new token", triton.cdiv(1, TILE) * 8)
    return {tuple(prompt): answer}


if __name__ == "__main__":
    main()
