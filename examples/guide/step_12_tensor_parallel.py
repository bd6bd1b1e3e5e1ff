"""Step 12: one model, divided over two processes that compute each token together.

From step 1: `forward` and the model, of which each process has a part. From step 2: the cache and
`generate_cached`, which run unchanged in both processes.
"""

import multiprocessing
import os
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch import Tensor

from examples.guide.common import QUESTIONS, Answers, chat, figure, text_of, timed
from examples.guide.step_01_forward import Model, forward, load
from examples.guide.step_02_kv_cache import KVCache, bytes_per_token, generate_cached

NUM_RANKS = 2
BY_OUTPUTS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "embed_tokens")
BY_INPUTS = ("o_proj", "down_proj")
DIVIDED = dict.fromkeys(BY_OUTPUTS, 0) | dict.fromkeys(BY_INPUTS, 1)
"""The dimension of a stored matrix [outputs, inputs] of which each rank has a part."""


@dataclass(frozen=True)
class Rank(Model):
    """What one of the processes has of the model: its part of each matrix, and all norms."""

    rank: int = 0
    exchanged: Counter[str] = field(default_factory=Counter)

    def add_up(self, part: Tensor) -> Tensor:
        """Returns the sum of all ranks' parts. None goes on before the last one has come."""
        dist.all_reduce(part)
        self.exchanged.update(sums=1, sum_bytes=part.nbytes)
        return part

    def side_by_side(self, part: Tensor) -> Tensor:
        """Returns all ranks' parts in one row, [tokens, outputs of all]."""
        parts = [torch.empty_like(part) for _ in range(NUM_RANKS)]
        dist.all_gather(parts, part)
        self.exchanged.update(logit_bytes=part.nbytes)
        return torch.cat(parts, dim=1)

    def linear(self, inputs: Tensor, name: str) -> Tensor:
        """Multiplies by this rank's part of a weight; exchanges the result where all need it."""
        outputs = super().linear(inputs, name)
        if name.endswith(BY_INPUTS):
            return self.add_up(outputs)
        return self.side_by_side(outputs) if name == "embed_tokens" else outputs

    def embed(self, token_ids: Tensor) -> Tensor:
        """Looks up the tokens of this rank's part of the vocabulary; others are 0 until the sum."""
        part = self.weights["model.embed_tokens.weight"]
        rows = token_ids - self.rank * len(part)
        is_here = (rows >= 0) & (rows < len(part))
        return self.add_up(part[rows.where(is_here, 0)] * is_here[:, None])


def take_part(model: Model, rank: int) -> Rank:
    """Returns a rank's part of a model."""
    weights = {}
    for name, weight in model.weights.items():
        dim = DIVIDED.get(name.split(".")[-2])
        # A copy, so that the rest of the matrix can be freed.
        weights[name] = weight if dim is None else weight.chunk(NUM_RANKS, dim)[rank].clone()
    heads, kv_heads = model.num_heads // NUM_RANKS, model.num_kv_heads // NUM_RANKS
    part = replace(model, weights=weights, num_heads=heads, num_kv_heads=kv_heads)
    return Rank(**vars(part), rank=rank)


@torch.inference_mode()
def run_rank(rank: int, meeting_point: str, prompt: list[int], reports: Connection) -> None:
    """A rank's process: it answers; in the pass after that, rank 1 ends in the fourth layer."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # All ranks are on this machine.
    torch.set_num_threads(1)
    meeting = f"file://{meeting_point}"
    dist.init_process_group("gloo", meeting, timedelta(seconds=30), NUM_RANKS, rank)
    alone, alone_seconds = timed(generate_cached, load(), prompt)
    model = take_part(load(), rank)
    answer, seconds = timed(generate_cached, model, prompt)
    exchanged = model.exchanged.copy()
    _, sum_seconds = timed(lambda: [model.add_up(torch.ones(1, 256)) for _ in range(100)])
    cache = KVCache(model, len(prompt))
    model.exchanged.clear()

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        if rank == 1 and layer == 3:
            os._exit(1)
        return cache.attend(layer, queries, keys, values)

    try:
        forward(model, torch.tensor(prompt), torch.arange(len(prompt)), attend)
    except RuntimeError:  # The other rank is gone.
        times = alone_seconds, seconds, sum_seconds / 100
        reports.send((answer == alone, answer, exchanged, model.exchanged["sums"], times))
    dist.destroy_process_group()


def draw(part: Rank) -> None:
    """Draws which part of each matrix is whose: rank 0's is dark, and has the size below."""
    sizes = {name.split(".")[-2]: weight.shape for name, weight in part.weights.items()}
    columns = []
    for name, dim in DIVIDED.items():
        tiles = ("██████████", "░░░░░░░░░░") if dim == 0 else ("█████░░░░░",) * 2
        columns.append((name, *tiles, "{} x {}".format(*sizes[name])))
    for row in zip(*columns, strict=True):
        print("".join(f"{text:<14}" for text in row).rstrip())


def main() -> Answers:
    """Answers in one process and in two; shows what they exchange, and what a dead one leaves."""
    model, prompt = load(), chat(QUESTIONS[2])
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (f"{folder}/ranks", prompt, sender)
        ranks = [spawn.Process(target=run_rank, args=(r, *arguments)) for r in range(NUM_RANKS)]
        for process in ranks:
            process.start()
        sender.close()
        is_equal, answer, exchanged, num_sums, times = receiver.recv()
        for process in ranks:
            process.join()
    part, num_computed = take_part(model, 0), len(prompt) + len(answer) - 1
    draw(part)
    print("\n" + text_of(answer))
    figure("equal to the answer of one process", is_equal)
    for label, some in (("the whole model", model), ("a rank", part)):
        figure(f"weights, {label}", f"{sum(w.numel() for w in some.weights.values()):,}")
        figure(f"bytes of a token in the cache, {label}", f"{bytes_per_token(some):,}")
    figure("sums in a pass", exchanged["sums"] // len(answer))
    figure("bytes in them for each token", f"{exchanged['sum_bytes'] // num_computed:,}")
    figure("bytes of logits for an answer's token", f"{exchanged['logit_bytes'] // len(answer):,}")
    alone, together, in_sum = (1000 * seconds for seconds in times)
    figure("ms for a token, two whole models", f"≈ {alone / len(answer):.1f} each")
    figure("ms for a token, one model in two parts", f"≈ {together / len(answer):.1f}")
    figure("ms for a sum", f"≈ {in_sum:.2f}")
    figure("rank 1 ends; sums until rank 0 knows", num_sums)
    return {tuple(prompt): answer}


if __name__ == "__main__":
    main()
