"""The same questions asked with stop texts and grammars: what the answer must be then."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demo_model.answers import MAX_TOKENS, Answer
from demo_model.conversation import Conversation
from demo_model.tokenizer import TOOL_TOKENS
from protos.pagestream.router.v1 import router_pb2

_MAX_JSON_CHARACTERS = 40
_SCHEMA = {
    "type": "object",
    "properties": {
        "answer": {"type": "string", "maxLength": _MAX_JSON_CHARACTERS},
        "is_known": {"type": "boolean"},
    },
    "required": ["answer", "is_known"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Variation:
    """One question with other parameters.

    Attributes:
        name: The kind of variation.
        conversation: The question.
        params: How to ask it.
        is_right: Whether an answer is what it must be.
    """

    name: str
    conversation: Conversation
    params: router_pb2.SamplingParams
    is_right: Callable[[Answer], bool]


def variations(asked: Sequence[Conversation], answers: Sequence[Answer]) -> list[Variation]:
    """Returns variations of questions whose plain answers are known.

    Greedy decoding under a grammar that allows the plain answer must give just that, unless it has
    tokens that are no text to a grammar; a stop text cuts it; and a text that must match a JSON
    schema matches it.
    """
    found: list[Variation] = []
    for place, (conversation, plain) in enumerate(zip(asked, answers, strict=True)):
        others = {answers[(place + step) % len(answers)].text for step in (1, 2, 3)}
        choices = sorted(text for text in {plain.text, *others} if text)
        grammars = {
            "choice": router_pb2.Grammar(choice=router_pb2.Choice(texts=choices)),
            "regular expression": router_pb2.Grammar(regex=r"(.|\n)*"),
            "Lark grammar": router_pb2.Grammar(lark=_lark(choices)),
        }
        if plain.has_ended and plain.text:
            if not any(token in plain.text for token in TOOL_TOKENS):
                found += [
                    Variation(name, conversation, _params(grammar=grammar), plain.__eq__)
                    for name, grammar in grammars.items()
                ]
            stop = plain.text[len(plain.text) // 2 :][:3]
            cut = Answer(plain.text.partition(stop)[0], has_ended=True)
            found.append(Variation("stop text", conversation, _params(stop=[stop]), cut.__eq__))
        schema = router_pb2.Grammar(json_schema=json.dumps(_SCHEMA))
        found.append(Variation("JSON schema", conversation, _params(grammar=schema), _is_json))
    return found


def _params(
    grammar: router_pb2.Grammar | None = None, stop: Sequence[str] = ()
) -> router_pb2.SamplingParams:
    return router_pb2.SamplingParams(
        temperature=0, max_tokens=MAX_TOKENS, grammar=grammar, stop=stop
    )


def _lark(texts: Sequence[str]) -> str:
    return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _is_json(answer: Answer) -> bool:
    try:
        found = json.loads(answer.text)
    except ValueError:
        return False
    if not answer.has_ended or set(found) != {"answer", "is_known"}:
        return False
    return len(found["answer"]) <= _MAX_JSON_CHARACTERS and isinstance(found["is_known"], bool)
