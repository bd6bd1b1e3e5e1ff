"""The tests' fake engine with steps so cheap that it can outrun a router on a core of its own.

    python -m benchmarks.router.lean_engine --port 9000 --tokenizer DIR --tokens-per-step 16

Each step brings every running request its next tokens, which are drawn once and not from what went
before. There is no prefix cache to speak of. Everything else is the fake engine's: the service, the
admission, one message per step, merging for a reader that is behind.
"""

import argparse
import asyncio
import random
import signal
import time
from pathlib import Path

from benchmarks.router.large_tokenizer import VOCAB_SIZE, WORD_IDS
from protos.pagestream.engine.v1 import engine_pb2
from tests.fakes.fake_core import RunningSequence
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig

_NUM_DRAWN = 1 << 16


class LeanEngine(FakeEngine):
    """A fake engine without work.

    Args:
        config: Its `decode_step_seconds` is the time from step to step while requests run.
        tokens_per_step: Of each request; the last step of a request may bring fewer.
        address: "host:port" to serve on.
    """

    def __init__(
        self, config: FakeEngineConfig, *, tokens_per_step: int = 1, address: str = "127.0.0.1:0"
    ) -> None:
        host, _, port = address.rpartition(":")
        super().__init__(config, host=host, port=int(port))
        self._tokens_per_step = tokens_per_step
        rng = random.Random(0)
        self._drawn = rng.choices(WORD_IDS, k=_NUM_DRAWN + tokens_per_step)
        self._position = 0

    async def _run(self) -> None:
        seconds = self.config.decode_step_seconds
        next_step = time.monotonic()
        while True:
            while not (self._running or self._waiting):
                self._work.clear()
                await self._work.wait()
            while self._waiting and len(self._running) < self.config.max_num_seqs:
                self._admit(self._waiting.popleft())
            next_step = max(next_step, time.monotonic() - seconds) + seconds
            await asyncio.sleep(next_step - time.monotonic())
            for sequence in list(self._running):
                if sequence.handle in sequence.sink.sequences:
                    self._step(sequence)
            self._publish()

    def _step(self, sequence: RunningSequence) -> None:
        sink, handle = sequence.sink, sequence.handle
        # `num_computed` counts what the load and the end need: prompt and output.
        sequence.num_computed = max(sequence.num_computed, sequence.num_prompt)
        missing = sequence.num_prompt + sequence.max_tokens - sequence.num_computed
        count = min(self._tokens_per_step, missing)
        sequence.num_computed += count
        start = self._position
        self._position = (start + count) % _NUM_DRAWN
        token_ids = self._drawn[start : start + count]
        waiting = sink.tokens.get(handle)
        if waiting is None:
            sink.tokens[handle] = token_ids
        else:
            waiting += token_ids
        if count == missing:
            finish = engine_pb2.Finish(reason=engine_pb2.FINISH_REASON_LENGTH)
            sink.message.finishes.add(handle=handle, finish=finish)
            self._forget(sequence)
        sink.wake()


def config_of(arguments: argparse.Namespace) -> FakeEngineConfig:
    """Returns the engine that the command line asks for."""
    return FakeEngineConfig(
        vocab_size=VOCAB_SIZE,
        max_model_len=32_768 + 4096,
        num_blocks=1 << 20,
        max_num_seqs=arguments.max_num_seqs,
        decode_step_seconds=arguments.step_seconds,
        tokenizer=arguments.tokenizer,
    )


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Returns the options of an engine process."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--step-seconds", type=float, required=True)
    parser.add_argument("--tokens-per-step", type=int, default=1)
    parser.add_argument("--max-num-seqs", type=int, default=1024)
    return parser


async def until_signalled() -> None:
    """Waits for SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await stopping.wait()


async def _serve(arguments: argparse.Namespace) -> None:
    engine = LeanEngine(
        config_of(arguments),
        tokens_per_step=arguments.tokens_per_step,
        address=f"127.0.0.1:{arguments.port}",
    )
    async with engine:
        await until_signalled()


if __name__ == "__main__":
    asyncio.run(_serve(parser_of(__doc__).parse_args()))
