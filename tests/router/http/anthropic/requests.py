"""Requests of Anthropic's API, and what a model says."""

USER = {"role": "user", "content": "go"}
BASE = {"model": "small", "max_tokens": 500, "messages": [USER]}
TOOL = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
THINKS = "<think>\nhm\n</think>\n\n"
CALLS = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
