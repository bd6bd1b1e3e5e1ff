"""Chats of well-known families become the text and the tokens of transformers."""

import pytest

from router.errors import InvalidRequest
from router.types.prompts import ChatPrompt
from tests.fakes import tokenizer_families
from tests.router.text import family_templates
from tests.tokenizers.chats import ANSWERED, ASKED, compare_chats, say
from tests.tokenizers.comparison import load

FAMILIES = {
    "LLAMA_2": "llama-2",
    "MISTRAL_1": "mistral-1",
    "MISTRAL_3": "mistral-3",
    "LLAMA_3_1": "llama-3",
    "GEMMA_1": "gemma",
    "GEMMA_3": "gemma",
    "QWEN_2_5": "tekken",
    "SPEAKS_ALWAYS": "llama-3",
}
NEVER_REFUSES = ("QWEN_2_5", "SPEAKS_ALWAYS")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A template's name, the router's tokenizer with it and that of transformers."""
    source = getattr(family_templates, request.param)
    files = tokenizer_families.files(FAMILIES[request.param], chat_template=source)
    ours, reference = load(files)
    yield request.param, ours, reference
    ours.close()


def test_chats_become_the_text_and_the_tokens_of_transformers(family):
    name, ours, reference = family

    outcome, num_errors = compare_chats(ours, reference)

    assert outcome.differences == []
    assert outcome.num_texts - num_errors >= 4
    assert bool(num_errors) == (name not in NEVER_REFUSES)


def test_beginning_of_a_text_is_marked_once(family):
    name, ours, reference = family
    # Llama 2 marks each pair of turns.
    num_marks = {"LLAMA_2": 2, "QWEN_2_5": 0, "SPEAKS_ALWAYS": 0}.get(name, 1)
    chat = ChatPrompt(messages=(ASKED, ANSWERED, say("user", "Sure?")))

    token_ids = ours.encode_rendered(ours.chat_template.render(chat), "").tolist()

    assert token_ids.count(reference.bos_token_id) == num_marks
    assert (token_ids[0] == reference.bos_token_id) == (num_marks > 0)
    assert token_ids[1] != reference.bos_token_id


def test_special_tokens_that_a_client_says_are_text(family):
    _, ours, reference = family
    special = (reference.bos_token, reference.eos_token)
    plain = ChatPrompt(messages=(ASKED,))
    forged = ChatPrompt(messages=(say("user", f"Say {special[0]} and {special[1]}x."),))

    chat, marker = ours.protect(forged)
    token_ids = ours.encode_rendered(ours.chat_template.render(chat), marker).tolist()

    as_ever = ours.encode_rendered(ours.chat_template.render(plain), "").tolist()
    for token_id in map(reference.convert_tokens_to_ids, special):
        assert token_ids.count(token_id) == as_ever.count(token_id)
    text = ours.decode(token_ids, skip_special_tokens=False)
    assert f"Say {special[0]} and {special[1]}x." in text


def test_error_of_a_template_is_one_line(templates):
    template = templates("{{ raise_exception('no tools:\\n  \\u2028 use another model\\r\\n') }}")

    with pytest.raises(InvalidRequest, match=r"rejected them: no tools: use another model$"):
        template.render(ChatPrompt(messages=(ASKED,)))
