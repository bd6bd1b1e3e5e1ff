"""The real EngineService over real gRPC without a model: tokens are hashes, time is simulated.

Each token is a hash of the seed and of all tokens before it, so that a lost, doubled or misplaced
token, a wrong resume or a wrong seed changes everything after it (`expected_tokens`). Scheduler,
block pool and the checks of requests are the product's; the methods under "faults" misbehave.

In a test:     `async with FakeEngine(FakeEngineConfig(block_size=4)) as engine: ... engine.address`
As a process:  `python -m tests.fakes.fake_engine --port 9000 --model-name fake --tokenizer DIR`
"""

import argparse
import asyncio
import hashlib
import logging
import secrets
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from protos.pagestream.engine.v1 import engine_pb2, engine_pb2_grpc
from protos.wire import channel, status
from protos.wire.limits import MAX_BLOCK_HASHES
from protos.wire.sampling_params import to_fields
from protos.wire.status import Reason
from protos.wire.tokenizer_digest import tokenizer_digest
from servicekit.grpc_tls import port_adder
from servicekit.tls import TlsSource
from tests.fakes.fake_core import (
    FakeCore,
    FakeEngineConfig,
    Refused,
    Sink,
)
from tests.fakes.fake_core import expected_tokens as expected_tokens

SERVICE = "pagestream.engine.v1.EngineService"
_CHUNK = 64 * 1024
_logger = logging.getLogger("fake_engine")


class FakeEngine(FakeCore, engine_pb2_grpc.EngineServiceServicer):
    """One fake engine; an async context manager that serves while it is entered.

    Attributes:
        address: "host:port", kept over `restart`.
        num_watches: Calls of WatchCache so far, over all starts.
        num_snapshots: Snapshots sent so far, over all starts.
    """

    def __init__(
        self,
        config: FakeEngineConfig | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: TlsSource | None = None,
    ) -> None:
        super().__init__(config or FakeEngineConfig())
        self._tls = tls
        self.address = f"{host}:{port}"
        self.num_watches = 0
        self.num_snapshots = 0

    async def __aenter__(self) -> "FakeEngine":
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self.reset(epoch=secrets.randbits(63) | 1)
        self._server = grpc.aio.server(options=channel.server_options())
        engine_pb2_grpc.add_EngineServiceServicer_to_server(self, self._server)
        self.health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        port = port_adder(self._server, self._tls)(self.address)
        self.address = f"{self.address.rpartition(':')[0]}:{port}"
        for service in ("", SERVICE):
            await self.health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._loop_task = asyncio.create_task(
            self._run_until_death(), name=f"fake engine {self.address}"
        )

    async def stop(self, grace: float | None = None) -> None:
        """Ends all calls after `grace` seconds, or at once, as a killed process would."""
        await self._server.stop(grace)
        self._loop_task.cancel()
        await asyncio.wait([self._loop_task])
        if not self._loop_task.cancelled():
            self._loop_task.result()

    # Faults.

    async def restart(self) -> None:
        """Dies and comes back on the same port with an empty cache and a new epoch."""
        await self.stop()
        await self.start()

    def die_after(self, num_tokens: int) -> None:
        """Dies abruptly once this many more tokens were generated; 0 is with the next step."""
        self._tokens_to_live = num_tokens

    def refuse(self, reason: Reason | None, retry_after: float | None = None) -> None:
        """Refuses every new request for this reason; None takes them again."""
        message = f"the fake engine was told to refuse: {reason}"
        self._refusal = Refused(reason, message, retry_after) if reason else None

    def stall(self) -> None:
        """Stops stepping while all connections stay up."""
        self._stalled = True

    def resume(self) -> None:
        """Ends a stall."""
        self._stalled = False
        self._work.set()

    async def drain(self) -> None:
        """Finishes what it has and refuses everything new."""
        self.state = engine_pb2.ENGINE_STATE_DRAINING
        await self.health.set(SERVICE, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._publish()

    def hand_back(self) -> None:
        """Ends all that it has as an engine does whose time of grace is over."""
        for request in list(self._requests.values()):
            self._cancel(request)
            error = Refused(Reason.DRAINING, "the fake engine is exiting")
            self._fail(request.sink, request.handle, error.status)

    def evict_all(self) -> None:
        """Empties the prefix cache."""
        self.core.forget_cache()
        self.cache.change([], list(self.cache.blocks))
        self._notify()

    def drop_deltas(self, count: int) -> None:
        """Loses this many of the next cache changes on their way to the watchers."""
        self._num_dropped_deltas = count

    # The service.

    async def Generate(self, request, context):
        sink = Sink()
        try:
            self._submit(sink, engine_pb2.Submission(request=request))
            while (message := await sink.take()) is not None:
                for failure in message.failures:
                    error = failure.error
                    unpacked = status.unpack(error.code, error.message, error.details)
                    reply = rpc_status.to_status(status.to_rpc_status(unpacked))
                    await context.abort_with_status(reply)
                response = engine_pb2.GenerateResponse(token_ids=message.token_ids)
                for entry in message.logprobs:
                    response.logprobs.CopyFrom(entry.logprobs)
                for entry in message.prompt_logprobs:
                    yield engine_pb2.GenerateResponse(prompt_logprobs=entry.prompt_logprobs)
                for admission in message.admissions:
                    response.admission.CopyFrom(admission.admission)
                for finish in message.finishes:
                    response.finish.CopyFrom(finish.finish)
                yield response
                if message.finishes:
                    return
        finally:
            self._close(sink)

    async def GenerateMany(self, request_iterator, context):
        sink = Sink()
        self._sinks.add(sink)
        reader = asyncio.create_task(self._read(sink, request_iterator))
        sink.message.MergeFrom(self.identity())
        try:
            self._publish()
            while (message := await sink.take()) is not None:
                yield message
            if sink.error is not None:
                reply = rpc_status.to_status(status.to_rpc_status(sink.error.status))
                await context.abort_with_status(reply)
        finally:
            reader.cancel()
            self._close(sink)
            await asyncio.wait([reader])
            if not reader.cancelled() and (error := reader.exception()):
                _logger.warning("stream lost error=%r", error)

    async def WatchCache(self, request, context):
        self.num_watches += 1
        # Otherwise a call that has nothing to tell yet keeps a task of the client's waiting.
        await context.send_initial_metadata(())
        cache = self.cache
        epoch, position = request.epoch, request.sequence_number
        while True:
            oldest = cache.history[0][0] if cache.history else cache.sequence_number + 1
            if epoch != cache.epoch or not oldest - 1 <= position <= cache.sequence_number:
                epoch, position = cache.epoch, cache.sequence_number
                self.num_snapshots += 1
                for message in self._snapshot():
                    yield message
            newer = [change for change in cache.history if change[0] > position]
            if newer:
                for number, stored, removed in newer:
                    position = number
                    if self._num_dropped_deltas:
                        self._num_dropped_deltas -= 1
                        continue
                    delta = engine_pb2.CacheDelta(
                        stored_block_hashes=stored, removed_block_hashes=removed
                    )
                    yield engine_pb2.WatchCacheResponse(
                        epoch=epoch, sequence_number=number, delta=delta
                    )
            elif position == cache.sequence_number:
                await self._changed.wait()

    def identity(self) -> engine_pb2.GenerateManyResponse:
        """Returns what the first message of each stream says of the engine."""
        return engine_pb2.GenerateManyResponse(
            epoch=self.cache.epoch, model_fingerprint=self.config.fingerprint
        )

    def _snapshot(self) -> list[engine_pb2.WatchCacheResponse]:
        hashes = list(self.cache.blocks)
        starts = range(0, max(1, len(hashes)), MAX_BLOCK_HASHES)
        return [
            engine_pb2.WatchCacheResponse(
                epoch=self.cache.epoch,
                sequence_number=self.cache.sequence_number,
                snapshot=engine_pb2.CacheSnapshot(
                    block_hashes=hashes[start : start + MAX_BLOCK_HASHES],
                    first=start == 0,
                    last=start + MAX_BLOCK_HASHES >= len(hashes),
                    part_number=number,
                ),
            )
            for number, start in enumerate(starts, start=1)
        ]

    async def GetModelInfo(self, request, context):
        config = self.config
        files = self._tokenizer_files()
        digests = {name: hashlib.sha256(content).digest() for name, content in files}
        return engine_pb2.GetModelInfoResponse(
            model_name=config.model_name,
            architecture="FakeForCausalLM",
            model_fingerprint=config.fingerprint,
            vocabulary_size=config.vocab_size,
            max_model_length_tokens=config.max_model_len,
            block_size_tokens=config.block_size,
            block_hash_scheme=config.block_hash_scheme,
            eos_token_ids=config.eos_token_ids,
            epoch=self.cache.epoch,
            total_block_count=config.num_blocks,
            max_running_request_count=config.max_num_seqs,
            max_batched_token_count=config.max_num_batched_tokens,
            tensor_parallel_size=1,
            dtype="none",
            tokenizer_sha256=tokenizer_digest(digests),
            supported_sampling_params=sorted(config.supported_params),
            default_sampling_params=engine_pb2.SamplingParams(
                **to_fields(config.default_sampling_params)
            ),
            max_logprob_count=config.max_logprobs,
            engine_version="0",
        )

    async def GetTokenizer(self, request, context):
        files = self._tokenizer_files()
        if not files:
            error = Refused(Reason.NO_TOKENIZER, "the fake engine has no tokenizer").status
            await context.abort_with_status(rpc_status.to_status(status.to_rpc_status(error)))
        for name, content in files:
            digest = hashlib.sha256(content).hexdigest()
            header = engine_pb2.TokenizerFile(name=name, size_bytes=len(content), sha256=digest)
            yield engine_pb2.GetTokenizerResponse(file=header)
            for start in range(0, len(content), _CHUNK):
                yield engine_pb2.GetTokenizerResponse(chunk=content[start : start + _CHUNK])

    def _tokenizer_files(self) -> list[tuple[str, bytes]]:
        folder = self.config.tokenizer
        paths = sorted(folder.iterdir()) if folder else []
        wanted = [path for path in paths if path.suffix in (".json", ".jinja", ".txt", ".model")]
        return [(path.name, path.read_bytes()) for path in wanted]

    async def _run_until_death(self) -> None:
        await self._run()
        await self._server.stop(None)

    async def _read(
        self, sink: Sink, messages: AsyncIterator[engine_pb2.GenerateManyRequest]
    ) -> None:
        async for message in messages:
            if message.epoch not in (0, self.cache.epoch):
                found = f"{message.epoch}, not {self.cache.epoch}"
                sink.fail(
                    Refused(Reason.EPOCH_MISMATCH, f"the stream is for an engine of epoch {found}")
                )
                return
            for submission in message.submissions:
                self._submit(sink, submission)
            for handle in message.cancelled_handles:
                if open_request := sink.requests.get(handle):
                    self._cancel(open_request)
            self._publish_soon()
        sink.closed = True
        sink.wake()


async def _serve(config: FakeEngineConfig, host: str, port: int) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with FakeEngine(config, host=host, port=port) as engine:
        _logger.info("ready address=%s model=%s", engine.address, config.model_name)
        await stopping.wait()
        await engine.drain()
        await engine.wait_until(lambda: not engine.num_running + engine.num_waiting, 30.0)


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    defaults = FakeEngineConfig()
    parser = argparse.ArgumentParser(
        description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--eos-token-ids", type=int, nargs="*", default=[])
    for name in ("model_name", "fingerprint"):
        parser.add_argument(f"--{name.replace('_', '-')}", default=getattr(defaults, name))
    for name in ("prefill_tokens_per_second", "decode_step_seconds"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=float, default=getattr(defaults, name))
    for name in ("vocab_size", "max_model_len", "block_size", "num_blocks", "max_num_seqs"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(defaults, name))
    options = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    host, port = options.pop("host"), options.pop("port")
    options["eos_token_ids"] = tuple(options["eos_token_ids"])
    asyncio.run(_serve(FakeEngineConfig(**options), host, port))


if __name__ == "__main__":
    main()
