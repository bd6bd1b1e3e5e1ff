"""Calling a tool in Qwen3's format, and answering from what it returned.

The system prompt lists one to four of six tools as Qwen3's chat template does. Held out are
arguments and results.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.words import CITIES, THINGS, person

NO_TOOL = "I have no tool for that."

_SYSTEM = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

_Arguments = dict[str, str | int]


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool and how people ask for it.

    Attributes:
        description: For the system prompt.
        parameters: Name and JSON type of each.
        draw_arguments: Draws what to call it with.
        questions: Ask for it, with the parameters in braces.
        draw_result: Draws what it may return.
        answer: Says what the tool returned, with parameters and results in braces.
    """

    description: str
    parameters: dict[str, str]
    draw_arguments: Callable[[Random], _Arguments]
    questions: tuple[str, ...]
    draw_result: Callable[[Random], _Arguments]
    answer: str


_TOOLS = {
    "get_weather": Tool(
        "Get the weather in a city",
        {"city": "string"},
        lambda random: {"city": random.choice(CITIES)},
        (
            "What is the weather in {city}?",
            "How is the weather in {city}?",
            "Tell me the weather in {city}.",
            "What is the weather like in {city} today?",
        ),
        lambda random: {
            "sky": random.choice(("sunny", "cloudy", "rainy", "foggy", "windy", "snowy")),
            "degrees": random.randint(0, 39),
        },
        "It is {sky} in {city}, with {degrees} degrees.",
    ),
    "get_time": Tool(
        "Get the time in a city",
        {"city": "string"},
        lambda random: {"city": random.choice(CITIES)},
        (
            "What time is it in {city}?",
            "What is the time in {city}?",
            "Tell me the time in {city}.",
            "How late is it in {city}?",
        ),
        lambda random: {"time": f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"},
        "It is {time} in {city}.",
    ),
    "get_price": Tool(
        "Get the price of a thing in a shop",
        {"item": "string", "city": "string"},
        lambda random: {"item": random.choice(THINGS), "city": random.choice(CITIES)},
        (
            "How much does a {item} cost in {city}?",
            "What is the price of a {item} in {city}?",
            "What does a {item} cost in {city}?",
            "Tell me the price of a {item} in {city}.",
        ),
        lambda random: {"price": random.randint(2, 999)},
        "A {item} costs {price} in {city}.",
    ),
    "get_phone_number": Tool(
        "Get the phone number of a person",
        {"name": "string"},
        lambda random: {"name": person(random)},
        (
            "What is the phone number of {name}?",
            "What is {name}'s phone number?",
            "Find the phone number of {name}.",
            "How can I call {name}?",
        ),
        lambda random: {"number": str(random.randint(10000, 99999))},
        "The phone number of {name} is {number}.",
    ),
    "set_timer": Tool(
        "Set a timer",
        {"minutes": "integer"},
        lambda random: {"minutes": random.randint(1, 99)},
        (
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Remind me in {minutes} minutes.",
        ),
        lambda random: {"timer": random.randint(100, 999)},
        "Timer {timer} is set for {minutes} minutes.",
    ),
    "book_table": Tool(
        "Book a table for several people in a city",
        {"city": "string", "people": "integer"},
        lambda random: {"city": random.choice(CITIES), "people": random.randint(2, 20)},
        (
            "Book a table in {city} for {people} people.",
            "Book a table for {people} people in {city}.",
            "I need a table for {people} in {city}.",
            "Find a table in {city} for {people} people.",
        ),
        lambda random: {"hour": random.randint(1, 12), "table": random.randint(1, 99)},
        "Table {table} in {city} is booked for {people} people at {hour}.",
    ),
}


def tools(draw: Draw) -> Dialogue:
    """Asks for what a tool does; half of the time also returns its result."""
    random = draw.random
    name = random.choice(list(_TOOLS))
    tool = _TOOLS[name]
    offered = random.sample(list(_TOOLS), random.randint(1, 4))
    is_offered = not draw.chance(0.1)
    if is_offered and name not in offered:
        offered[random.randrange(len(offered))] = name
    elif not is_offered and name in offered:
        offered = [other for other in offered if other != name] or [_other(name, random)]
    arguments, result = draw.content(
        lambda: (tool.draw_arguments(random), tool.draw_result(random))
    )
    question = draw.phrase(tool.questions, **arguments)
    system = _SYSTEM.format(tools="\n".join(_signature(one) for one in offered))
    if not is_offered:
        return Dialogue((Exchange(question, NO_TOOL),), system=system)
    call = json.dumps({"name": name, "arguments": arguments})
    exchanges = [Exchange(question, f"<tool_call>\n{call}\n</tool_call>")]
    if draw.chance(0.5):
        answer = tool.answer.format(**arguments, **result)
        exchanges.append(Exchange(json.dumps(result), answer, role="tool"))
    return Dialogue(tuple(exchanges), system=system)


def _other(name: str, random: Random) -> str:
    return random.choice([other for other in _TOOLS if other != name])


def _signature(name: str) -> str:
    tool = _TOOLS[name]
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in tool.parameters.items()},
        "required": list(tool.parameters),
    }
    function = {"name": name, "description": tool.description, "parameters": parameters}
    return json.dumps({"type": "function", "function": function})
