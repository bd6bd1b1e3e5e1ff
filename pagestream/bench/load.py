"""Sends requests and measures their answers, in a closed or an open loop."""

import asyncio
import itertools
import random
import time
from contextlib import aclosing

from pagestream.bench.options import LoadOptions
from pagestream.bench.results import Results, Usage
from pagestream.bench.target import RequestFailed, Target
from pagestream.bench.workload import Workload
from servicekit.common_options import MAX_SECONDS

_NO_END = float(MAX_SECONDS)
"""For a load that has none."""
_PAUSE_SECONDS = 0.1
"""After a failure in a closed loop, which would storm a server that refuses at once."""


class Load:
    """A load for one model.

    Attributes:
        results: What has come so far.
    """

    def __init__(
        self, target: Target, model: str, workload: Workload, options: LoadOptions, seed: int
    ) -> None:
        self.results = Results()
        self._target = target
        self._model = model
        self._workload = workload
        self._options = options
        self._times = random.Random(f"{seed} times")
        self._numbers = itertools.count()
        self._started = 0.0
        self._last_end = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the load began."""
        return time.perf_counter() - self._started if self._started else 0.0

    async def run(self) -> None:
        """Sends all requests and waits for their ends; when cancelled, those under way are lost."""
        cpu = time.process_time()
        self._started = self._last_end = time.perf_counter()
        try:
            if self._options.rate is None:
                await self._run_closed()
            else:
                await self._run_open(self._options.rate)
        finally:
            self.results.seconds = self._last_end - self._started
            self.results.cpu_seconds = time.process_time() - cpu

    def _next(self, moment: float) -> int | None:
        """Returns the number of a request to be sent at a moment, or None if there are enough."""
        if self._options.seconds is not None and moment - self._started >= self._options.seconds:
            return None
        number = next(self._numbers)
        most = self._options.max_requests
        return number if most is None or number < most else None

    async def _run_closed(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._options.max_open):
                tasks.create_task(self._send_one_after_the_other())

    async def _send_one_after_the_other(self) -> None:
        while (number := self._next(now := time.perf_counter())) is not None:
            if not await self._send(number, now):
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _run_open(self, rate: float) -> None:
        room = asyncio.Semaphore(self._options.max_open)
        planned = self._started + self._times.expovariate(rate)
        async with asyncio.TaskGroup() as tasks:
            while (number := self._next(planned)) is not None:
                await asyncio.sleep(planned - time.perf_counter())
                if await self._has_room(room):
                    sending = tasks.create_task(self._send(number, planned))
                    sending.add_done_callback(lambda _: room.release())
                else:
                    self.results.num_started += 1
                    self.results.fail("NOT_SENT")
                planned += self._times.expovariate(rate)

    async def _has_room(self, room: asyncio.Semaphore) -> bool:
        """Waits for room for one more request; returns whether it came before the load's end.

        Who has waited is sent late, and the latency of the answer includes it.
        """
        seconds = self._options.seconds or _NO_END
        try:
            async with asyncio.timeout(max(0.0, seconds - self.seconds)):
                await room.acquire()
        except TimeoutError:
            return False
        return True

    async def _send(self, number: int, planned: float) -> bool:
        """Sends one request and reads its answer; returns whether it succeeded."""
        results = self.results
        request = self._workload.request(number)
        results.num_started += 1
        results.send_delay.add(time.perf_counter() - planned)
        usage = Usage()
        last: float | None = None
        try:
            async with (
                asyncio.timeout(self._options.request_seconds),
                aclosing(self._target.ask(self._model, request, usage)) as parts,
            ):
                async for count in parts:
                    now = time.perf_counter()
                    if last is None:
                        results.first_token.add(now - planned)
                    else:
                        results.next_token.add((now - last) / count, count)
                    results.num_output_tokens += count
                    last = now
        except RequestFailed as error:
            results.fail(str(error))
            return False
        except TimeoutError:
            results.fail("TIMEOUT")
            return False
        else:
            results.num_succeeded += 1
            results.answer.add(time.perf_counter() - planned)
            return True
        finally:
            results.add_usage(usage)
            self._last_end = time.perf_counter()
