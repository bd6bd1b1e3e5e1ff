"""litellm, the client of many APIs."""

import json
from pathlib import Path

from tests.clients.site import Site, Tool

_CALLS = Path(__file__).with_name("litellm_calls.py")


async def check(site: Site) -> list[tuple[str, str]]:
    """Calls its functions in a process of its environment."""
    # Otherwise it fetches the prices of models when it is imported.
    options = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    output = await site.command("python", "-P", str(_CALLS), site.url, site.model, **options)
    return [(was_run, came_out) for was_run, came_out in json.loads(output.splitlines()[-1])]


# Not 1.107.0, which was reported as compromised.
TOOL = Tool(name="litellm", version="1.110.2", check=check)
