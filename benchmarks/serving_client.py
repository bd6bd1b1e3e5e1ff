"""Calls a router through one of its doors with a workload, and prints what came back as JSON.

    python -m benchmarks.serving_client --door http --address HOST:PORT --workload streams \
        --share 0/4 --concurrency 64 --go FILE

One of several processes that begin together: it makes its calls ready, prints a line that says so,
and waits for the file to appear.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.router.connections import (
    Call,
    Connection,
    GrpcConnection,
    SseConnection,
    grpc_messages,
    sse_events,
)
from benchmarks.router.stream_client import HTTP_PATH, ROUTER_PATH, call_all
from benchmarks.workloads import TEMPERATURE, Workload, nano_bench, uniform
from protos.pagestream.router.v1 import router_pb2

WORKLOADS: Mapping[str, Callable[[], Workload]] = {
    "streams": nano_bench,
    "single": lambda: uniform(50, 128, 8),
    "quick_streams": lambda: uniform(6, 20, 8),
    "quick_single": lambda: uniform(3, 20, 8),
}
"""By name; prompts are tokens, answers are text."""
READY = "ready"
_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.0005


class GrpcDoor:
    """How to call through gRPC."""

    def connect(self, address: str) -> Connection:
        """Returns a new connection, which carries any number of calls at once."""
        return GrpcConnection(address, ROUTER_PATH)

    def body(self, prompt: list[int], params: dict[str, Any]) -> bytes:
        """Returns the message of a new call."""
        request = router_pb2.GenerateRequest(sampling_params=params)
        request.token_ids.ids.extend(prompt)
        return request.SerializeToString()

    def read(self, call: Call) -> tuple[list[float], int]:
        """Returns when text came, and the number of all tokens."""
        messages = [
            (moment, router_pb2.GenerateResponse.FromString(message))
            for moment, message in grpc_messages(call)
        ]
        times = [moment for moment, message in messages if message.text]
        return times, sum(len(message.token_ids) for _, message in messages)


class HttpDoor:
    """How to call through HTTP, by OpenAI's completions."""

    def connect(self, address: str) -> Connection:
        """Returns a new connection, which carries one call at a time."""
        return SseConnection(address, HTTP_PATH)

    def body(self, prompt: list[int], params: dict[str, Any]) -> bytes:
        """Returns the body of a new call."""
        fields = {
            "model": "",
            "prompt": prompt,
            "stream": True,
            "stream_options": {"include_usage": True},
            **params,
        }
        return json.dumps(fields).encode()

    def read(self, call: Call) -> tuple[list[float], int]:
        """Returns when text came, and the number of all tokens."""
        events: list[tuple[float, Any]] = sse_events(call)
        times = [
            moment
            for moment, event in events
            if any(choice["text"] for choice in event.get("choices", ()))
        ]
        usage = events[-1][1].get("usage")
        if usage is None:
            raise ConnectionError(f"a call ended with {events[-1][1]} instead of its usage")
        return times, usage["completion_tokens"]


DOORS: Mapping[str, GrpcDoor | HttpDoor] = {"gRPC": GrpcDoor(), "HTTP": HttpDoor()}


def run(door: GrpcDoor | HttpDoor, options: argparse.Namespace) -> dict[str, Any]:
    """Makes all calls and returns what they brought.

    Raises:
        ConnectionError: An answer has not as many tokens as were asked for.
    """
    index, count = map(int, options.share.split("/"))
    requests = list(zip(*WORKLOADS[options.workload](), strict=True))[index::count]
    bodies = [
        door.body(
            prompt, {"max_tokens": max_tokens, "temperature": TEMPERATURE, "ignore_eos": True}
        )
        for prompt, max_tokens in requests
    ]
    num_connections = 1 if isinstance(door, GrpcDoor) else min(options.concurrency, len(bodies))
    connections = [door.connect(options.address) for _ in range(num_connections)]
    _wait_for(options.go)
    calls = call_all(connections, bodies, options.concurrency)
    for connection in connections:
        connection.socket.close()
    answers = [door.read(call) for call in calls]
    for (_, num_tokens), (_, max_tokens) in zip(answers, requests, strict=True):
        if num_tokens != max_tokens:
            raise ConnectionError(f"a call got {num_tokens} tokens instead of {max_tokens}")
    return {
        "started": min(call.started for call in calls),
        "ended": max(call.ended for call in calls),
        "num_tokens": sum(num_tokens for _, num_tokens in answers),
        "num_messages": sum(len(times) for times, _ in answers),
        "first_token_s": [
            times[0] - call.started for call, (times, _) in zip(calls, answers, strict=True)
        ],
    }


def _wait_for(path: Path) -> None:
    print(READY, flush=True)
    deadline = time.monotonic() + _WAIT_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} has not appeared within {_WAIT_SECONDS} s")
        time.sleep(_POLL_SECONDS)


def main() -> None:
    """Prints the result of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--door", choices=DOORS, required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--share", default="0/1", help="INDEX/COUNT of the workload's requests")
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--go", type=Path, required=True, help="file to wait for")
    options = parser.parse_args()
    print(json.dumps(run(DOORS[options.door], options)))


if __name__ == "__main__":
    main()
