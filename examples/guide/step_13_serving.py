"""Step 13: many clients at once, and an engine that waits for none of them.

From step 5: `Engine`. The clients, in `clients.py`, send a line of JSON each, and get lines back.
"""

import asyncio
import json
import multiprocessing
import socket
import tempfile
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from examples.guide.clients import READ, visit
from examples.guide.common import END, Answers, bar, chat, figure

if TYPE_CHECKING:
    from examples.guide.step_05_continuous_batching import Engine

MAX_WAITING = 16  # Tokens for one client.
Report = tuple[list[list[int]], list[float], dict[str, int]]


class Stream:
    """What is on its way to a client."""

    def __init__(self, writer: asyncio.StreamWriter, max_tokens: int) -> None:
        self.tokens: list[int] = []
        self.changed = asyncio.Event()
        self.writing = asyncio.ensure_future(self.write(writer, max_tokens))

    def put(self, token: int) -> None:
        """Adds a token; never waits. A client for which too many wait is cut off."""
        self.tokens.append(token)
        self.changed.set()
        if len(self.tokens) == MAX_WAITING:
            self.writing.cancel()

    async def write(self, writer: asyncio.StreamWriter, max_tokens: int) -> None:
        """Writes lines to the end of the answer. Tokens that come meanwhile share the next one."""
        last = num_tokens = 0
        while last != END and num_tokens < max_tokens:
            await self.changed.wait()
            self.changed.clear()
            tokens, self.tokens = self.tokens, []
            writer.write(json.dumps({"tokens": tokens}).encode() + b"\n")
            await writer.drain()  # Returns when the operating system has taken all of it.
            last, num_tokens = tokens[-1], num_tokens + len(tokens)


class Server:
    """Accepts clients on an event loop, and passes on what they want and what they get."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.streams: dict[int, Stream] = {}
        self.ends = {"complete": 0, "cut off": 0, "left": 0}

    def deliver(self) -> None:
        """Takes in the tokens of a step."""
        for request_id, token in self.pipe.recv():
            if request_id in self.streams:  # Otherwise its client has gone.
                self.streams[request_id].put(token)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client."""
        # Little may wait where nobody counts it: in the operating system, and in asyncio.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        writer.transport.set_write_buffer_limits(0)
        request = json.loads(await reader.readline())
        request_id = len(self.streams) + sum(self.ends.values())  # So many came before.
        self.pipe.send(("add", request["prompt"], request["max_tokens"]))
        stream = self.streams[request_id] = Stream(writer, request["max_tokens"])
        leaving = asyncio.ensure_future(reader.read(1))  # It has no more to say, so it leaves.
        await asyncio.wait([stream.writing, leaving], return_when=asyncio.FIRST_COMPLETED)
        cut = stream.writing.cancelled()
        self.ends["cut off" if cut else "complete" if stream.writing.done() else "left"] += 1
        del self.streams[request_id]
        self.pipe.send(("cancel", request_id))  # Nothing happens if it has ended.
        stream.writing.cancel()
        leaving.cancel()
        await asyncio.gather(stream.writing, leaving, return_exceptions=True)
        writer.transport.abort()  # What the operating system has taken still arrives.


async def compute(engine: "Engine", pipe: Connection) -> None:
    """Computes on an event loop that does other things, too."""
    while True:
        turn(engine, pipe, 0)
        await asyncio.sleep(0)


async def serve_visit(pipe: Connection, beside: Coroutine[None, None, None]) -> Report:
    """Serves clients beside something else; returns answers, how late timers were, and ends."""
    server = Server(pipe)
    asyncio.get_running_loop().add_reader(pipe.fileno(), server.deliver)
    other = asyncio.ensure_future(beside)
    with tempfile.TemporaryDirectory() as folder:
        async with await asyncio.start_unix_server(server.serve, path := f"{folder}/socket"):
            answers, late = await visit(path)
    other.cancel()
    return answers, late, server.ends


def run_server(pipe: Connection, reports: Connection) -> None:
    """The server's process, which imports no torch."""
    reports.send(asyncio.run(serve_visit(pipe, asyncio.sleep(0))))


def turn(engine: "Engine", pipe: Connection, timeout: float) -> None:
    """Takes in what came, computes a step, sends what it gave; an idle engine waits so long."""
    while pipe.poll(timeout if engine.is_idle else 0):
        name, *arguments = pipe.recv()
        getattr(engine, name)(*arguments)
    if not engine.is_idle:
        pipe.send(engine.step())


def main() -> Answers:
    """Serves the same clients with the engine on the server's event loop, and apart from it."""
    import torch  # Only in this process.

    from examples.guide.step_01_forward import load
    from examples.guide.step_05_continuous_batching import Engine

    torch.set_num_threads(1)  # The other core is for the server.
    engine, spawn = Engine(load(), num_blocks=64), multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    _, together, _ = asyncio.run(serve_visit(theirs, compute(engine, pipe)))
    engine, (pipe, theirs) = Engine(engine.model, num_blocks=64), spawn.Pipe()
    reports, sent = spawn.Pipe(duplex=False)
    spawn.Process(target=run_server, args=(theirs, sent)).start()
    sent.close()  # So that `reports` ends if the server dies.
    while not reports.poll():
        turn(engine, pipe, 0.1)
    answers, apart, ends = reports.recv()
    for end, count in ends.items():
        figure(f"answers {end}", count)
    figure("blocks in use at the end", engine.num_blocks - len(engine.cache.free))
    print("\nms that a timer is late, median and worst, with the engine")
    for label, late in (("on the loop", together), ("apart", apart)):
        median = sorted(late)[len(late) // 2]
        bar(label, median, max(together), f"≈ {median:.2f}, {max(late):.1f}")
    return {tuple(chat(question)): answer for question, answer in zip(READ, answers, strict=True)}


if __name__ == "__main__":
    main()
