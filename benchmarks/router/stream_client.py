"""Calls a service so many times, so many at once, and prints what came back as JSON.

    python -m benchmarks.router.stream_client --target router --address HOST:PORT

A process of its own. Targets: `router` and `engine` by gRPC; `http`, the router's HTTP door, and
`smg`, both by OpenAI's completions with server-sent events.
"""

import argparse
import json
import random
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.router.connections import (
    Call,
    Connection,
    GrpcConnection,
    SseConnection,
    grpc_messages,
    sse_events,
)
from protos.pagestream.engine.v1 import engine_pb2
from protos.pagestream.router.v1 import router_pb2

MODEL = "fake"
ROUTER_PATH = "/pagestream.router.v1.RouterService/Generate"
_ENGINE_PATH = "/pagestream.engine.v1.EngineService/Generate"
HTTP_PATH = "/v1/completions"
_OVER_HTTP = ("http", "smg")
"""Targets that one and the same client code calls."""
_SILENCE_SECONDS = 30.0
_SYSTEM = "You are a helpful assistant. Answer in one sentence."
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a call brought; times are seconds since it was sent."""

    num_prompt_tokens: int
    num_tokens: int
    num_messages: int
    """Those with text or tokens."""
    num_characters: int
    first_token: float
    total: float
    arrivals: list[tuple[float, int]]
    """Of each such message the time, of `time.perf_counter`, and the number of its tokens."""


def text_prompt(rng: random.Random, num_letters: int) -> str:
    """Returns words that nobody said before, about one token a letter."""
    letters = rng.choices(_LETTERS, k=num_letters)
    return " ".join("".join(letters[start : start + 8]) for start in range(0, num_letters, 8))


class Target:
    """How to call one kind of service.

    Args:
        prompt: `text`, `chat` or `tokens`; over HTTP always text.
        num_prompt_tokens: About; letters of a text.
        max_tokens: Of each answer.
    """

    def __init__(self, name: str, prompt: str, num_prompt_tokens: int, max_tokens: int) -> None:
        self._name = name
        self._is_http = name in _OVER_HTTP
        self._prompt = prompt
        self._num_prompt_tokens = num_prompt_tokens
        self._max_tokens = max_tokens

    def connect(self, address: str) -> Connection:
        """Returns a new connection."""
        if self._is_http:
            return SseConnection(address, HTTP_PATH)
        return GrpcConnection(address, ROUTER_PATH if self._name == "router" else _ENGINE_PATH)

    def body(self, rng: random.Random) -> bytes:
        """Returns the message of a new call."""
        text = text_prompt(rng, self._num_prompt_tokens)
        ids = rng.choices(range(2, 400), k=self._num_prompt_tokens)
        params: dict[str, Any] = {"max_tokens": self._max_tokens, "temperature": 0.0}
        params["ignore_eos"] = True
        if self._is_http:
            fields = {"model": MODEL, "prompt": text, "stream": True, **params}
            return json.dumps(fields).encode()
        if self._name == "engine":
            engine_request = engine_pb2.GenerateRequest(
                prompt_token_ids=ids, sampling_params=params
            )
            return engine_request.SerializeToString()
        request = router_pb2.GenerateRequest(sampling_params=params)
        if self._prompt == "text":
            request.text = text
        elif self._prompt == "chat":
            request.chat.messages.add(role="system", content=_SYSTEM)
            request.chat.messages.add(role="user", content=text)
        else:
            request.token_ids.ids.extend(ids)
        return request.SerializeToString()

    def read(self, call: Call) -> Answer:
        """Looks into what a call brought.

        Raises:
            ConnectionError: It did not end well.
        """
        parts = self._parts_of_events(call) if self._is_http else self._parts(call)
        times = [moment for moment, num_tokens, _ in parts if num_tokens]
        num_tokens = sum(count for _, count, _ in parts)
        if num_tokens != self._max_tokens:
            raise ConnectionError(f"a call got {num_tokens} tokens instead of {self._max_tokens}")
        return Answer(
            num_prompt_tokens=self._num_prompt_tokens,
            num_tokens=num_tokens,
            num_messages=len(times),
            num_characters=sum(count for _, _, count in parts),
            first_token=times[0] - call.started,
            total=call.ended - call.started,
            arrivals=[(moment, count) for moment, count, _ in parts if count],
        )

    def _parts(self, call: Call) -> list[tuple[float, int, int]]:
        """Returns time, tokens and characters of each message."""
        kind: Any = router_pb2 if self._name == "router" else engine_pb2
        messages = [(m, kind.GenerateResponse.FromString(d)) for m, d in grpc_messages(call)]
        if not messages or not messages[-1][1].HasField("finish"):
            raise ConnectionError("a call ended without its finish")
        return [(m, len(r.token_ids), len(getattr(r, "text", ""))) for m, r in messages]

    def _parts_of_events(self, call: Call) -> list[tuple[float, int, int]]:
        # A completion's events carry text alone; every token of the fake engine begins one word.
        parts = []
        for moment, event in sse_events(call):
            choices: Any = event.get("choices")
            text = choices[0]["text"] if choices else ""
            parts.append((moment, text.count(" "), len(text)))
        return parts


def call_all(
    connections: Sequence[Connection], bodies: Sequence[bytes], concurrency: int
) -> list[Call]:
    """Makes all calls, each next one when another has ended, and returns them when all have.

    Raises:
        TimeoutError: A service has been silent for long.
    """
    num_ended = 0
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        calls = [
            connections[number % len(connections)].call(body)
            for number, body in enumerate(bodies[:concurrency])
        ]
        while num_ended < len(bodies):
            ready = selector.select(_SILENCE_SECONDS)
            if not ready:
                raise TimeoutError(f"no message came for {_SILENCE_SECONDS} s")
            for key, _ in ready:
                for _ in range(key.data.receive()):
                    num_ended += 1
                    if len(calls) < len(bodies):
                        calls.append(key.data.call(bodies[len(calls)]))
    return calls


def run(
    target: Target, address: str, num_requests: int, concurrency: int, num_connections: int
) -> dict[str, Any]:
    """Makes all calls and returns what they brought."""
    rng = random.Random(time.time_ns())
    connections = [target.connect(address) for _ in range(num_connections)]
    bodies = [target.body(rng) for _ in range(num_requests)]
    cpu, started = time.process_time(), time.perf_counter()
    calls = call_all(connections, bodies, concurrency)
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    for connection in connections:
        connection.socket.close()
    answers = [target.read(call) for call in calls]
    return {
        "wall_s": wall,
        "client_cpu_s": cpu,
        "steady": steady(answers),
        "num_tokens": sum(answer.num_tokens for answer in answers),
        "num_messages": sum(answer.num_messages for answer in answers),
        "num_characters": sum(answer.num_characters for answer in answers),
        "first_token_s": [answer.first_token for answer in answers],
        "total_s": [answer.total for answer in answers],
    }


def steady(answers: list[Answer]) -> dict[str, float]:
    """Returns what came while all calls streamed: from the last first token to the first end.

    Times are of `time.perf_counter`, which all processes of a machine share. A window that ends
    before it starts says that not all calls ran at once.
    """
    start = max(answer.arrivals[0][0] for answer in answers)
    end = min(answer.arrivals[-1][0] for answer in answers)
    inside = [
        num_tokens
        for answer in answers
        for moment, num_tokens in answer.arrivals
        if start < moment <= end
    ]
    return {"start": start, "end": end, "num_tokens": sum(inside), "num_messages": len(inside)}


def main() -> None:
    """Prints the result of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=("router", "engine", *_OVER_HTTP), required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--prompt", choices=("text", "chat", "tokens"), default="text")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--requests", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--connections", type=int, default=1)
    options = parser.parse_args()
    target = Target(options.target, options.prompt, options.prompt_tokens, options.max_tokens)
    result = run(
        target, options.address, options.requests, options.concurrency, options.connections
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
