"""Answering in JSON of a given small schema.

The schema has 1 to 4 of eight keys, in any order, as a JSON Schema, in short, or as a list of keys.
The text says a value for each key and for others as well. Held out are people with their values.
"""

import json
from random import Random

from demo_model.conversation import Dialogue, Exchange
from demo_model.draw import Draw
from demo_model.words import ANIMALS, CITIES, COLOURS, FOODS, JOBS, person

_MAX_KEYS = 4
_TYPES = {
    "name": "string",
    "age": "integer",
    "city": "string",
    "job": "string",
    "colour": "string",
    "pet": "string",
    "food": "string",
    "code": "integer",
}
_SAYS = {
    "age": ("{name} is {value} years old.", "The age of {name} is {value}."),
    "city": ("{name} lives in {value}.", "The home of {name} is {value}."),
    "job": ("{name} works as a {value}.", "The job of {name} is {value}."),
    "colour": ("{name}'s favourite colour is {value}.", "{name} likes the colour {value}."),
    "pet": ("{name} has a {value}.", "The pet of {name} is a {value}."),
    "food": ("{name} likes {value}.", "The favourite food of {name} is {value}."),
    "code": ("{name}'s code is {value}.", "The code of {name} is {value}."),
}


def structured(draw: Draw) -> Dialogue:
    """Gives a schema and a text, and asks for JSON."""
    random = draw.random
    keys = random.sample(list(_TYPES), random.randint(1, _MAX_KEYS))
    told = [key for key in _SAYS if key in keys or draw.chance(0.3)]
    if not told:
        told = [random.choice(list(_SAYS))]
    random.shuffle(told)
    values = draw.content(lambda: {key: _value(key, random) for key in ("name", *told)})
    text = " ".join(
        random.choice(_SAYS[key]).format(name=values["name"], value=values[key]) for key in told
    )
    schema = _schema(keys, draw)
    answer = json.dumps({key: values[key] for key in keys})
    if draw.chance(0.3):
        system = random.choice(
            (
                "Always answer in JSON with this schema: {schema}",
                "Answer with JSON only. The schema is {schema}",
                "You extract data. Answer in JSON of this schema: {schema}",
            )
        ).format(schema=schema)
        return Dialogue((Exchange(text, answer),), system=system, stands_alone=True)
    asked = random.choice(
        (
            "{text} Give me JSON with the keys {keys}.",
            "Give me JSON with the keys {keys}: {text}",
            "Answer in JSON with this schema: {schema}\n{text}",
            "{text}\nAnswer in JSON with this schema: {schema}",
            "{text} Answer in JSON: {schema}",
            "Give me this as JSON with the schema {schema}: {text}",
            "Extract the data as JSON.\nSchema: {schema}\nText: {text}",
            "Text: {text}\nSchema: {schema}\nAnswer in JSON.",
        )
    ).format(schema=schema, text=text, keys=_listed(keys))
    return Dialogue((Exchange(asked, answer),))


def _listed(keys: list[str]) -> str:
    *others, last = keys
    return f"{', '.join(others)} and {last}" if others else last


def _schema(keys: list[str], draw: Draw) -> str:
    if draw.chance(0.5):
        return "{" + ", ".join(f'"{key}": {_TYPES[key]}' for key in keys) + "}"
    properties = {key: {"type": _TYPES[key]} for key in keys}
    return json.dumps({"type": "object", "properties": properties, "required": keys})


def _value(key: str, random: Random) -> str | int:
    match key:
        case "name":
            return person(random)
        case "age":
            return random.randint(5, 99)
        case "code":
            return random.randint(1000, 9999)
    words = {
        "city": CITIES,
        "job": JOBS,
        "colour": COLOURS,
        "pet": ANIMALS,
        "food": FOODS,
    }
    return random.choice(words[key])
