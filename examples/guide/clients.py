"""The clients of step 13: four that read, one that leaves, one that never reads."""

import asyncio
import json
import select
import socket
import time

from examples.guide.common import QUESTIONS, chat

READ = QUESTIONS[2:6]
"""What those ask who read all that they get."""


def asking(question: str) -> bytes:
    """Returns a client's line."""
    return json.dumps({"prompt": chat(question), "max_tokens": 64}).encode() + b"\n"


async def read(path: str, line: bytes, enough: int = 64) -> list[int]:
    """Asks and reads; leaves when it has enough tokens, and returns them."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    tokens: list[int] = []
    while len(tokens) < enough and (answer := await reader.readline()):
        tokens += json.loads(answer)["tokens"]
    writer.close()
    return tokens


async def tick(late: list[float]) -> None:
    """Notes how many ms late a timer is, again and again."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(1000 * (time.perf_counter() - start) - 1)


async def visit(path: str) -> tuple[list[list[int]], list[float]]:
    """Lets all ask at once; returns the answers to `READ`, and how late timers were meanwhile."""
    lines = [asking(question) for question in READ]
    never_read, leave = asking(QUESTIONS[1]), asking(QUESTIONS[0])
    late: list[float] = []
    ticking = asyncio.ensure_future(tick(late))
    with socket.socket(socket.AF_UNIX) as sleeper:
        sleeper.connect(path)
        sleeper.sendall(never_read)
        readers = [read(path, line) for line in lines]
        *answers, _ = await asyncio.gather(*readers, read(path, leave, enough=3))
        hung_up = select.poll()
        hung_up.register(sleeper, 0)
        await asyncio.to_thread(hung_up.poll)
    ticking.cancel()
    return answers, late
