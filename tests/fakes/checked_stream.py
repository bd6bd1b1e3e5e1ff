"""A client's stream from fake engines, every token of which is known before."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import grpc
from grpc_status import rpc_status

from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.status import ErrorStatus, unpack
from tests.fakes.fake_engine import expected_tokens


class CheckedStream:
    """One request and all that came of it.

    Args:
        prompt: Its tokens.
        num_tokens: How many to ask for.
        temperature: 0 is greedy; else the engine draws a seed.
        model: Name of the model; empty is the only one.
        params: More sampling parameters.
        fields: More of the request, such as its priority.

    Attributes:
        call: The call once it was asked.
        token_ids: What was received.
        engine: The engine of the first admission.
        error: The status that the call ended with, None while it runs and after a good end.
        is_ended: Whether the call ended, in whatever way.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        num_tokens: int,
        temperature: float = 0.0,
        model: str = "",
        params: Mapping[str, Any] | None = None,
        **fields: object,
    ) -> None:
        self.token_ids: list[int] = []
        self.engine = ""
        self.error: grpc.aio.AioRpcError | None = None
        self.is_ended = False
        self._prompt = list(prompt)
        self._num_tokens = num_tokens
        self._temperature = temperature
        self._model = model
        self._params = dict(params or {})
        self._fields = fields
        self._seeds: list[int] = []
        self._usage = -1

    async def run(
        self,
        stub: router_pb2_grpc.RouterServiceStub,
        seconds: float,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Asks, and reads the stream to its end, for at most so many seconds.

        Calls `progress` after each message; what that raises cancels the call and is raised on.
        """
        self.ask(stub, seconds)
        try:
            await self.read(progress=progress)
        finally:
            self.leave()

    def ask(self, stub: router_pb2_grpc.RouterServiceStub, seconds: float) -> None:
        """Begins the call, which takes at most so many seconds, and reads nothing yet."""
        request = router_pb2.GenerateRequest(
            model=self._model,
            token_ids=router_pb2.TokenIds(ids=self._prompt),
            sampling_params=router_pb2.SamplingParams(
                temperature=self._temperature, max_tokens=self._num_tokens, **self._params
            ),
            **self._fields,
        )
        self.call = stub.Generate(request, timeout=seconds)

    async def read(
        self, max_messages: int | None = None, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Reads to the end of the stream, or so many messages if those come first."""
        try:
            for _ in count() if max_messages is None else range(max_messages):
                response = await self.call.read()
                if response is grpc.aio.EOF:
                    self.is_ended = True
                    break
                if response.HasField("admission"):
                    self._seeds.append(response.admission.seed)
                    self.engine = response.admission.engine
                self.token_ids += response.token_ids
                if response.HasField("finish"):
                    self._usage = response.finish.completion_token_count
                progress()
        except grpc.aio.AioRpcError as error:
            self.error = error
            self.is_ended = True

    def leave(self) -> None:
        """Cancels the call if it has not ended."""
        self.call.cancel()
        self.is_ended = True

    @property
    def status(self) -> ErrorStatus | None:
        """What the call's error says, None without one."""
        if self.error is None:
            return None
        packed = rpc_status.from_call(self.error)
        return unpack(packed.code, packed.message, packed.details)

    @property
    def fault(self) -> str:
        """What is wrong with a stream that ended well, empty if nothing is."""
        if fault := self.fault_so_far:
            return fault
        if len(self.token_ids) != self._num_tokens:
            return f"{len(self.token_ids)} tokens of {self._num_tokens}"
        return "" if self._usage == self._num_tokens else "wrong usage"

    @property
    def fault_so_far(self) -> str:
        """What is wrong with the tokens that came, however the stream ended."""
        if not self.token_ids:
            return ""
        if len(self._seeds) != 1:
            return f"{len(self._seeds)} admissions"
        seed = self._seeds[0] if self._temperature else 0
        num_expected = min(len(self.token_ids), self._num_tokens)
        expected = expected_tokens(self._prompt, num_expected, seed=seed)
        return "" if self.token_ids == expected else "wrong tokens"
