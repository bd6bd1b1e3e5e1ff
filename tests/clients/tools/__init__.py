"""The tools that are run."""

from tests.clients.site import Tool
from tests.clients.tools import aiperf, evalscope, guidellm, litellm, llm, lm_eval

TOOLS: list[Tool] = [
    litellm.TOOL,
    guidellm.TOOL,
    aiperf.TOOL,
    lm_eval.TOOL,
    evalscope.TOOL,
    llm.TOOL,
]
