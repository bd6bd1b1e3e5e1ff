"""The tests' fake engine with steps so cheap that it can outrun a router on a core of its own.

    python -m benchmarks.router.lean_engine --port 9000 --tokenizer DIR --tokens-per-step 16

Each step brings every running request its next tokens, which are drawn once and not from what went
before. There is no prefix cache. Everything else is the fake engine's: the service, the checks of
requests, one message per step, merging for a reader that is behind.
"""

import argparse
import asyncio
import random
import signal
import time
from array import array
from pathlib import Path

from benchmarks.router.large_tokenizer import VOCAB_SIZE, WORD_IDS
from engine_service.core.limits import Limits
from engine_service.core.progress import SchedulerStatistics
from engine_service.core.types import (
    Admission,
    Finish,
    FinishReason,
    Request,
    StepOutput,
    int32_array,
)
from servicekit.tls import TlsSource, server_tls
from tests.fakes.fake_engine import FakeEngine, FakeEngineConfig

_NUM_DRAWN = 1 << 16


class LeanCore:
    """Takes the place of the product's core: no blocks, no hashes, tokens that are drawn once.

    Args:
        config: Its blocks are always free.
        tokens_per_step: Of each request; the last step of a request may bring fewer.
    """

    def __init__(self, config: FakeEngineConfig, tokens_per_step: int) -> None:
        self._config = config
        self._limits = Limits.from_info(config.info)
        self._tokens_per_step = tokens_per_step
        self._next_step = 0.0
        self._waiting: dict[int, Request] = {}
        self._missing: dict[int, int] = {}
        """Tokens that each running request still gets."""
        self._num_waiting_tokens = 0
        self._drawn = int32_array(random.Random(0).choices(WORD_IDS, k=_NUM_DRAWN))
        self._position = 0

    def add(self, request: Request) -> None:
        """Takes a request."""
        self._waiting[request.request_id] = request
        self._num_waiting_tokens += len(request.prompt_token_ids)

    def cancel(self, request_id: int) -> None:
        """Ends a request without a word; one that is not open is passed over."""
        if self._missing.pop(request_id, None) is None and request_id in self._waiting:
            self._take(request_id)

    def step(self) -> StepOutput:
        """Brings every running request its next tokens."""
        admissions = self._admit()
        missing = self._missing
        per_step = self._tokens_per_step
        request_ids = array("q", missing)
        counts = int32_array([per_step]) * len(request_ids)
        finishes = []
        for index, (request_id, rest) in enumerate(missing.items()):
            if rest > per_step:
                missing[request_id] = rest - per_step
            else:
                counts[index] = rest
                finishes.append(Finish(request_id=request_id, reason=FinishReason.LENGTH))
        for finish in finishes:
            del missing[finish.request_id]
        return StepOutput(
            request_ids=request_ids,
            token_counts=counts,
            token_ids=self._draw(sum(counts)),
            admissions=admissions,
            finishes=finishes,
        )

    def step_seconds(self) -> float:
        """Returns how long to wait until the time of a step has passed since the last one."""
        seconds = self._config.decode_step_seconds
        now = time.monotonic()
        self._next_step = max(self._next_step, now - seconds) + seconds
        return self._next_step - now

    def statistics(self) -> SchedulerStatistics:
        """Returns what waits and what runs."""
        return SchedulerStatistics(
            num_running=len(self._missing),
            num_waiting=len(self._waiting),
            num_waiting_prefill_tokens=self._num_waiting_tokens,
        )

    def num_free_blocks(self) -> int:
        """Returns that all of them are."""
        return self._config.num_blocks

    def forget_cache(self) -> None:
        """Does nothing: there is no cache."""

    def _take(self, request_id: int) -> Request:
        request = self._waiting.pop(request_id)
        self._num_waiting_tokens -= len(request.prompt_token_ids)
        return request

    def _admit(self) -> list[Admission]:
        admissions = []
        while self._waiting and len(self._missing) < self._config.max_num_seqs:
            request = self._take(next(iter(self._waiting)))
            num_known = len(request.prompt_token_ids) + len(request.resume_token_ids)
            missing = self._limits.max_num_tokens(request) - num_known
            self._missing[request.request_id] = missing
            admissions.append(
                Admission(
                    request_id=request.request_id,
                    num_cached_tokens=0,
                    seed=request.sampling_params.seed or 0,
                    queue_seconds=0.0,
                )
            )
        return admissions

    def _draw(self, count: int) -> "array[int]":
        start = self._position
        self._position = (start + count) % _NUM_DRAWN
        token_ids = self._drawn[start : start + count]
        while len(token_ids) < count:
            token_ids += self._drawn[: count - len(token_ids)]
        return token_ids


class LeanEngine(FakeEngine):
    """A fake engine without work.

    Args:
        config: Its `decode_step_seconds` is the time from step to step while requests run.
        tokens_per_step: Of each request; the last step of a request may bring fewer.
        address: "host:port" to serve on.
        tls: What it presents and demands; None is plain text.
    """

    def __init__(
        self,
        config: FakeEngineConfig,
        *,
        tokens_per_step: int = 1,
        address: str = "127.0.0.1:0",
        tls: TlsSource | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        self._tokens_per_step = tokens_per_step
        super().__init__(config, host=host, port=int(port), tls=tls)

    def make_core(self) -> LeanCore:
        """Returns a core without work."""
        return LeanCore(self.config, self._tokens_per_step)


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
    certs = arguments.certs
    tls = certs and server_tls(certs / "server.pem", certs / "server.key", certs / "ca.pem")
    engine = LeanEngine(
        config_of(arguments),
        tokens_per_step=arguments.tokens_per_step,
        address=f"127.0.0.1:{arguments.port}",
        tls=tls,
    )
    async with engine:
        await until_signalled()


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--certs", type=Path, help="folder of server.pem, server.key and ca.pem")
    asyncio.run(_serve(parser.parse_args()))
