"""llm, the command line of Simon Willison."""

import json

from tests.clients.commands import expect
from tests.clients.site import Site, Tool

_QUESTION = "What is the capital of France?"
_ANSWER = "Paris"


async def check(site: Site) -> list[tuple[str, str]]:
    """Asks questions."""
    site.write(
        "extra-openai-models.yaml",
        f"""- model_id: pagestream
  model_name: {site.model}
  api_base: {site.url}/v1
  supports_schema: true
""",
    )

    async def ask(*arguments: str) -> str:
        options = {"LLM_USER_PATH": str(site.folder), "OPENAI_API_KEY": "any"}
        return (await site.command("llm", "-m", "pagestream", *arguments, **options)).strip()

    streamed = await ask(_QUESTION, "-o", "temperature", "0")
    whole = await ask(_QUESTION, "--no-stream", "-o", "temperature", "0")
    expect(_ANSWER in streamed and streamed == whole, f"llm prints {streamed!r} and {whole!r}")
    schema = await ask("Anna is 31. Tell me about Anna.", "--schema", "name, age int")
    fields = json.loads(schema)
    expect(fields.keys() == {"name", "age"}, f"llm prints {schema!r} for a schema")
    return [
        ("a question, streamed and whole", f"both times {streamed!r}"),
        ("a question with a schema", schema),
    ]


TOOL = Tool(name="llm", version="0.36", check=check)
