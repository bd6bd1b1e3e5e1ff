"""Step 11: whole decode steps as CUDA graphs of fixed sizes, launched before the last has ended.

From step 10: `Pages`. Without a GPU a tape stands in for a graph: no faster, but with its rules.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from examples.guide import DEVICE
from examples.guide.common import END, QUESTIONS, Answers, chat, figure, timed
from examples.guide.step_01_forward import load
from examples.guide.step_10_paged_decode import BLOCK, Pages, paged_attention

SIZES = (1, 2, 4)  # rows of the graphs; a step takes the smallest that it fits into
WIDTH = 8  # blocks of the longest text


class Tape(TorchFunctionMode):
    """Notes torch's operations and their tensors, and repeats them in the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        result = func(*args, **(kwargs or {}))
        inputs = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        is_new = isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in inputs
        # What only looks at a tensor in another way, or asks its size, is no work.
        if is_new or func.__name__ == "__setitem__" or (args and result is args[0]):
            self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Computes all again from what the inputs' memory holds now."""
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            if again is not result:
                result.copy_(again)


class Decoder:
    """Rows that decode, in buffers that stay where they are. Rows of zeros are padding."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.token_ids, self.positions, self.advance = torch.zeros(3, SIZES[-1]).long()
        self.tables = torch.zeros(SIZES[-1], WIDTH).long()
        self.recordings = {size: self.record(size) for size in SIZES}

    def step(self, size: int) -> None:
        """Computes the first rows, and makes the buffers ready for the step after it."""
        inputs = self.tables[:size], self.positions[:size], self.token_ids[:size]
        self.token_ids[:size] = self.pages.compute(*inputs)
        self.positions[:size].add_(self.advance[:size])

    def record(self, size: int) -> Any:  # noqa: ANN401
        """Returns a recording of `step`, with a method `replay`."""
        self.step(size)  # Outside of the recording: kernels are compiled, libraries start.
        recording: Any = torch.cuda.CUDAGraph() if DEVICE == "cuda" else Tape()
        with torch.cuda.graph(recording) if DEVICE == "cuda" else recording:
            self.step(size)
        return recording

    def start(self, row: int, prompt: list[int]) -> int:
        """Computes a prompt; returns its first token. Block 0 is left to the padding."""
        table = 1 + row * WIDTH + torch.arange(WIDTH)
        rows = table.expand(len(prompt), -1), torch.arange(len(prompt)), torch.tensor(prompt)
        self.tables[row], self.positions[row], self.advance[row] = table, len(prompt), 1
        self.token_ids[row] = self.pages.compute(*rows)[-1]
        return int(self.token_ids[row])

    def launch(self, num_rows: int) -> tuple[Tensor, Any]:
        """Enqueues a step; returns its tokens, and the event of their arrival on the host."""
        size = min(size for size in SIZES if size >= num_rows)
        self.recordings[size].replay()
        self.counts.update({"steps": 1, "rows": size, "padding": size - num_rows})
        tokens = self.token_ids[:num_rows].clone().to("cpu", non_blocking=True)
        ended = torch.cuda.current_stream().record_event() if DEVICE == "cuda" else None
        return tokens, ended

    def keep(self, rows: list[int]) -> None:
        """Moves these rows to the front; those behind them become padding."""
        for buffer in (self.token_ids, self.positions, self.advance, self.tables):
            buffer[: len(rows)], buffer[len(rows) :] = buffer[rows], 0

    def answer(self, prompts: list[list[int]], num_in_flight: int) -> list[list[int]]:
        """Launches up to so many steps before it reads the oldest one's tokens."""
        answers = [[self.start(row, prompt)] for row, prompt in enumerate(prompts)]
        live, launched = list(range(len(prompts))), list[Any]()
        self.counts = Counter[str]()
        while live or launched:
            while live and len(launched) < num_in_flight:
                launched.append((live, *self.launch(len(live))))
            requests, tokens, ended = launched.pop(0)
            if ended:
                ended.synchronize()  # Waits for this step, not for those launched after it.
            for request, token_id in zip(requests, tokens.tolist(), strict=True):
                self.counts["late"] += END in answers[request]
                answers[request].extend([] if END in answers[request] else [token_id])
            rows = [row for row, request in enumerate(live) if END not in answers[request]]
            if len(rows) < len(live):
                self.keep(rows)
                live = [live[row] for row in rows]
        return answers


def draw(title: str, launch: int, work: str, num: int, num_in_flight: int) -> None:
    """Draws `num` pieces of work that a host launches and a device does; a character is 1 µs."""
    host, device, ends = "", "", [0] * num_in_flight
    for _ in range(num):
        host = host.ljust(ends[-num_in_flight]) + "▒" * (launch - 1) + "▏"
        device = device.ljust(len(host)) + work
        ends.append(len(device))
    print(f"{title}: {len(device)} µs\n  host   {host}\n  device {device}")


@torch.inference_mode()
def main() -> Answers:
    """Counts and draws what a host does for a step; answers with one and two steps in flight."""
    torch.set_num_threads(1)
    model, prompts = load(), [chat(question) for question in QUESTIONS[2:6]]
    model.weights.update({name: weight.to(DEVICE) for name, weight in model.weights.items()})
    shape = model.num_layers, 2, 1 + 4 * WIDTH, model.num_kv_heads, BLOCK, model.head_size
    with torch.device(DEVICE):
        decoder = Decoder(Pages(model, torch.zeros(shape), paged_attention))
        with Tape() as tape:
            decoder.step(1)
        seconds = min(timed(lambda: decoder.advance + 1)[1] for _ in range(1000))
        figure("operations of a decode step", len(tape.operations))
        figure("to launch them, at 5 µs each", f"{5 * len(tape.operations):,} µs")
        figure("adding 1 to four numbers took here", f"≈ {seconds * 1e6:.1f} µs")
        draw("\nkernel by kernel", 5, "█▊", 8, 8)
        draw("as a graph", 5, "█▊" * 8, 1, 1)
        draw("\nsteps one after the other", 4, "█" * 9 + "▊", 4, 1)
        draw("two steps in flight", 4, "█" * 9 + "▊", 4, 2)
        figure("\ngraphs", f"≈ {'of CUDA' if DEVICE == 'cuda' else 'tapes, as there is no GPU'}")
        for ahead in (1, 2):
            answers = decoder.answer(prompts, ahead)
            figure(f"{ahead} in flight", ", ".join(f"{k} {v}" for k, v in decoder.counts.items()))
    return {tuple(prompt): answer for prompt, answer in zip(prompts, answers, strict=True)}


if __name__ == "__main__":
    main()
