"""200 JSON schemas in groups by feature, and the features that the library refuses."""

import itertools
import random


def _object(required=True, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required else [],
        "additionalProperties": False,
    }


_STRING = {"type": "string", "maxLength": 8}
_FORMATS = (
    "date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri", "duration",
)  # fmt: skip
_PATTERNS = (
    "^[a-z]+$", "^[0-9]{3}-[0-9]{4}$", "^(yes|no)$", "a", "^ab?c*$", r"^\d+$", r"^\w{2,5}$",
    "[xyz]{2}$", "^.{3}$", "^[^a]$", "^[A-Z][a-z]{1,6}( [A-Z][a-z]{1,6}){0,2}$", "^(a|b){2,4}$",
)  # fmt: skip


def _numbers():
    for low, high in ((0, 9), (-5, 5), (10, 1000), (-1000, -10), (7, 7), (0, 2**31)):
        yield {"type": "integer", "minimum": low, "maximum": high}
        yield {"type": "number", "minimum": low, "maximum": high + 0.5}
        yield {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1}
    for step in (1, 2, 5, 10, 64):
        yield {"type": "integer", "multipleOf": step, "minimum": 0, "maximum": 1000}
    yield {"type": "integer", "minimum": 3}
    yield {"type": "number", "maximum": -0.25}
    yield {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 20}


def _strings():
    for low, high in itertools.combinations((0, 1, 2, 5, 10, 12), 2):
        yield {"type": "string", "minLength": low, "maxLength": high}
    for pattern in _PATTERNS:
        yield {"type": "string", "pattern": pattern, "maxLength": 30}
    for name in _FORMATS:
        yield {"type": "string", "format": name}


def _values():
    values = (
        "a",
        'q"\\/',
        "é😀",
        "",
        0,
        -1,
        2.5,
        True,
        False,
        None,
        [],
        [1, "x"],
        {},
        {"a": [None]},
    )
    for value in values:
        yield {"const": value}
    for size in range(2, 12):
        yield {"enum": list(values[:size])}
    yield {"type": "string", "enum": ["a", "b", 1, None]}


def _arrays():
    for low, high in itertools.combinations((0, 1, 2, 3, 5), 2):
        yield {"type": "array", "items": {"type": "integer"}, "minItems": low, "maxItems": high}
    for size in (1, 2, 3):
        prefix = [{"type": "integer"}, {"type": "boolean"}, {"enum": ["a", "b"]}][:size]
        yield {"type": "array", "prefixItems": prefix, "items": False, "minItems": size}
        yield {"type": "array", "prefixItems": prefix, "items": {"type": "null"}, "maxItems": 5}
        yield {"type": "array", "items": _object(a={"enum": [1, 2]}), "maxItems": size}
    yield {"type": "array", "items": _STRING, "maxItems": 4}
    yield {"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2},
           "maxItems": 2}  # fmt: skip
    yield {"type": "array", "maxItems": 0}


def _objects():
    kinds = {
        "i": {"type": "integer"},
        "s": _STRING,
        "b": {"type": "boolean"},
        "n": {"type": "null"},
    }
    for size in range(1, 5):
        for names in itertools.combinations(kinds, size):
            properties = {name: kinds[name] for name in names}
            yield _object(**properties)
            yield _object(required=False, **properties)
    yield _object(a=_object(b=_object(c=_object(d={"enum": [1]}))))
    yield {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 3}
    yield {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1,
           "maxProperties": 2}  # fmt: skip
    yield {**_object(a={"type": "integer"}), "additionalProperties": _STRING, "maxProperties": 3}
    yield {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "integer"}},
           "additionalProperties": False, "maxProperties": 3}  # fmt: skip
    yield _object(**{'a"b': {"type": "null"}, "é": {"type": "null"}, "": {"type": "null"}})


def _unions():
    parts = ({"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"enum": ["x", "y"]},
             _object(a={"type": "null"}), {"type": "array", "maxItems": 0})  # fmt: skip
    for one, other in itertools.combinations(parts, 2):
        yield {"anyOf": [one, other]}
    yield {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 5}]}
    yield {"oneOf": [_object(kind={"const": "a"}), _object(kind={"const": "b"})]}
    yield {"type": ["integer", "null"]}
    yield {"type": ["boolean", "string"], "maxLength": 3}
    yield {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]}
    yield {"allOf": [{"minLength": 2}, {"type": "string", "maxLength": 3}]}
    yield {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
           "allOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]}],
           "maxProperties": 2}  # fmt: skip


def _references():
    yield {"$defs": {"n": {"type": "integer"}}, **_object(a={"$ref": "#/$defs/n"})}
    yield {"definitions": {"n": _object(x={"type": "null"})}, "$ref": "#/definitions/n"}
    yield {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "boolean"}}, "$ref": "#/$defs/a"}
    # A tree, a list, and two kinds that hold each other.
    yield {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}},
           "$ref": "#/$defs/t"}  # fmt: skip
    yield {"$defs": {"l": {"anyOf": [{"type": "null"}, _object(next={"$ref": "#/$defs/l"})]}},
           "$ref": "#/$defs/l"}  # fmt: skip
    yield {"$defs": {"a": {"anyOf": [{"type": "null"}, _object(b={"$ref": "#/$defs/b"})]},
                     "b": {"anyOf": [{"type": "integer"}, _object(a={"$ref": "#/$defs/a"})]}},
           "$ref": "#/$defs/a"}  # fmt: skip


GROUPS = {
    "numbers": list(_numbers()),
    "strings": list(_strings()),
    "values": list(_values()),
    "arrays": list(_arrays()),
    "objects": list(_objects()),
    "unions": list(_unions()),
    "references": list(_references()),
    "annotations": [
        {"title": "t", "description": "d", "default": 1, "examples": [1], "type": "integer",
         "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://a.example/s"},
        {"type": "string", "maxLength": 3, "readOnly": True, "deprecated": False, "$comment": "c"},
    ],
}  # fmt: skip


def _mixed():
    """Objects of random parts of the other groups."""
    generator = random.Random(0)
    for _ in range(30):
        parts = [
            generator.choice(
                GROUPS[generator.choice(("numbers", "strings", "values", "arrays", "unions"))]
            )
            for _ in range(3)
        ]
        yield _object(**dict(zip(("first", "second", "third"), parts, strict=True)))


GROUPS["mixed"] = list(_mixed())

REFUSED = {
    "not": ({"not": {"type": "string"}}, "Unimplemented keys"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "Unimplemented keys"),
    "contains": ({"type": "array", "contains": {"type": "integer"}}, "Unimplemented keys"),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 1}}, "Unimplemented keys"),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "Unimplemented"),
    "dependentSchemas": ({"type": "object", "dependentSchemas": {"a": {}}}, "Unimplemented"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 3}}, "Unimplemented"),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, "Unimplemented"),
    "unevaluatedItems": ({"type": "array", "unevaluatedItems": False}, "Unimplemented"),
    "oneOf that overlaps": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    "unknown format": ({"type": "string", "format": "colour"}, "Unknown format"),
    "look-around": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "back-reference": ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
    "remote reference": ({"$ref": "http://a.example/schema"}, "does not fetch"),
    "file": ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    "missing reference": ({"$ref": "#/nowhere"}, "does not exist"),
    "only itself": ({"allOf": [{"$ref": "#"}]}, "allows no text"),
    "nothing": ({"type": "string", "minLength": 3, "maxLength": 2}, "Unsatisfiable"),
    "empty enum": ({"enum": []}, "Unsatisfiable"),
    "unknown type": ({"type": "decimal"}, "Invalid type"),
}
"""By feature: a schema that needs it, and what the refusal says."""
