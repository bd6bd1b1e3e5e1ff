import json

import jsonschema
import pytest

from engine_service.grammar.compiler import BadGrammar
from engine_service.grammar.trial import try_grammar
from protos.wire.sampling_params import Grammar
from tests.engine_service.grammar.model import EOS_TOKEN_IDS, TOKENIZER, generate, text_of
from tests.engine_service.grammar.schemas import GROUPS, REFUSED


def schema(value):
    return Grammar(form="json_schema", text=json.dumps(value))


def test_there_are_200_schemas_all_valid():
    schemas = [value for group in GROUPS.values() for value in group]
    assert len(schemas) >= 200
    for value in schemas:
        jsonschema.Draft202012Validator.check_schema(value)


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("group", GROUPS)
def test_texts_of_a_random_model_are_valid(group, temperature):
    values = GROUPS[group]
    for value in values:
        try_grammar(TOKENIZER, schema(value))
    outputs = generate([schema(value) for value in values], temperature=temperature, max_tokens=96)
    num_complete = 0
    for value, output in zip(values, outputs, strict=True):
        if output[-1] not in EOS_TOKEN_IDS:
            # Cut off; `generate` has seen that each token was allowed.
            continue
        num_complete += 1
        text = text_of(output).decode()
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        validator = jsonschema.Draft202012Validator(value, format_checker=checker)
        errors = [error.message for error in validator.iter_errors(json.loads(text))]
        assert not errors, (value, text, errors)
    assert num_complete > 0.7 * len(values)


@pytest.mark.parametrize("feature", REFUSED)
def test_what_is_not_supported_is_refused_by_name(feature):
    value, words = REFUSED[feature]
    with pytest.raises(BadGrammar) as caught:
        try_grammar(TOKENIZER, schema(value))
    assert words in str(caught.value)
    assert str(caught.value).isprintable()
