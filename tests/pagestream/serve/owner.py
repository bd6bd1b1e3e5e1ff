"""What `pagestream serve` does once it has a plan: here a plan of stand-ins.

`python -m tests.pagestream.serve.owner ROUTER ENGINE…`, each a behaviour of the stand-in.
"""

import asyncio
import os
import sys

from pagestream.serve.fleet import Fleet
from pagestream.serve.plan import Plan, Service
from tests.fakes.service_process import free_ports

GRACE_SECONDS = float(os.environ.get("GRACE_SECONDS", "30"))


def stand_in(name, behaviour, *ports):
    return Service(
        name=name,
        arguments=["tests.pagestream.serve.stand_in", behaviour, *map(str, ports)],
        address="127.0.0.1:1",
        operations_address=f"127.0.0.1:{ports[0]}",
        place="" if name == "router" else "the CPU",
    )


async def main():
    router, *engines = sys.argv[1:]
    http_port, *ports = free_ports(len(engines) + 2)
    plan = Plan(
        model="stand-in",
        engines=tuple(
            stand_in(f"engine-{number}", behaviour, ports.pop())
            for number, behaviour in enumerate(engines)
        ),
        router=stand_in("router", router, ports.pop(), http_port),
        http_address=f"127.0.0.1:{http_port}",
        grace_seconds=GRACE_SECONDS,
    )
    return await Fleet(plan, os.environ).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
