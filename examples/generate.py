"""Asks a router one question and prints the answer as it streams.

python examples/generate.py [ADDRESS] [QUESTION]
"""

import sys

import grpc

from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50050"
question = sys.argv[2] if len(sys.argv) > 2 else "introduce yourself"
with grpc.insecure_channel(address) as channel:
    request = router_pb2.GenerateRequest(
        chat={"messages": [{"role": "user", "content": question}]},
        sampling_params={"temperature": 0.6, "max_tokens": 256},
    )
    stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]
    try:
        for response in stub.Generate(request, timeout=60):
            print(response.text, end="", flush=True)
    except grpc.RpcError as error:
        sys.exit(f"{address}: {error.code().name}: {error.details()}")
print()
