"""`pagestream serve MODEL`: a router and its engines on this machine, started and ended as one."""

import asyncio
import signal
from collections.abc import Sequence

from pagestream.environment import variables
from pagestream.packages import check_engine_packages, check_router_packages
from pagestream.serve.options import READER, check_variables
from pagestream.serve.plan import Plan, make_plan
from servicekit.errors import StartupError
from servicekit.log import print_error
from servicekit.process import exit_code_of


def main(arguments: Sequence[str]) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    try:
        given = READER.read(arguments)
        check_variables(variables())
        check_router_packages()
        check_engine_packages()
        return asyncio.run(_run(make_plan(given, variables())))
    except StartupError as error:
        print_error("pagestream serve", error)
        return 2
    # Before the signals are taken as they should, and after.
    except KeyboardInterrupt:
        return exit_code_of(signal.SIGINT)


async def _run(plan: Plan) -> int:
    # Its events belong to the loop that runs when they are made.
    from pagestream.serve.fleet import Fleet

    return await Fleet(plan, variables()).run()
