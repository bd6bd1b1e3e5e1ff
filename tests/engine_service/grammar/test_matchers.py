import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine_service.grammar.compiler import BadGrammar, compile_grammar
from engine_service.grammar.matchers import SlotMatchers
from engine_service.grammar.tokenizer import UnusableTokenizer, read_tokenizer
from engine_service.grammar.trial import try_grammar
from protos.wire.sampling_params import Grammar
from tests.engine_service.grammar.model import (
    EOS_TOKEN_IDS,
    TOKENIZER,
    TOKENIZER_JSON,
    VOCAB_SIZE,
    allowed,
    generate,
    text_of,
    token_ids,
)

PERSON = Grammar(
    form="json_schema",
    text=json.dumps(
        {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
    ),
)
CHOICES = ("yes", "yesterday", 'a "b" \\ /', "new\nline", "é😀\x01", "%json {}", "<|im_start|>")
EOS = list(EOS_TOKEN_IDS)


@pytest.fixture
def matchers():
    found = SlotMatchers(TOKENIZER, 2)
    yield found
    found.close()


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_random_texts_match_each_form(temperature):
    forms = {
        "regex": Grammar(form="regex", text="(ab|c){2,5}[0-9]{1,3}"),
        "lark": Grammar(
            form="lark", text='start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/'
        ),
        "choice": Grammar(form="choice", choices=CHOICES),
        "json_object": Grammar(form="json_object"),
    }
    copies = 8
    grammars = [grammar for grammar in forms.values() for _ in range(copies)]
    outputs = generate(grammars, temperature=temperature, max_tokens=200)
    texts = [text_of(ids).decode() if ids[-1] in EOS_TOKEN_IDS else None for ids in outputs]
    regex, lark, choice, objects = (
        [text for text in texts[at : at + copies] if text is not None]
        for at in range(0, 4 * copies, copies)
    )
    assert min(map(len, (regex, lark, choice, objects))) >= 4
    assert all(re.fullmatch("(ab|c){2,5}[0-9]{1,3}", text) for text in regex)
    assert all(re.fullmatch(r"[0-9]+(\+[0-9]+)*", text) for text in lark)
    assert set(choice) <= set(CHOICES)
    assert all(isinstance(json.loads(text), dict) for text in objects)


@pytest.mark.parametrize("text", CHOICES)
def test_each_choice_can_be_generated_and_then_ends(matchers, text):
    matchers.start(0, Grammar(form="choice", choices=CHOICES), [])
    # As text, even where a special token has the same.
    for token_id in [token for part in text for token in token_ids(part)]:
        matchers.advance([0], [token_id])
    found, filled = allowed(matchers, 0)
    assert not filled.failures
    assert set(EOS) <= set(found)
    assert (filled.ended == [0]) == (text != "yes")


def test_what_can_only_end_allows_the_end_alone(matchers):
    matchers.start(0, Grammar(form="regex", text=""), [])
    matchers.start(1, Grammar(form="regex", text="a"), token_ids("a"))
    for slot in (0, 1):
        found, filled = allowed(matchers, slot)
        assert (found, filled.ended, filled.failures) == (EOS, [0], {})
    # A step in flight may bring tokens behind the end.
    matchers.advance([1], [EOS[0]])
    matchers.advance([1], [EOS[1]])
    assert allowed(matchers, 1) == (EOS, allowed(matchers, 0)[1])


def test_where_a_text_may_end_both_are_allowed(matchers):
    matchers.start(0, Grammar(form="regex", text="ab?"), token_ids("a"))
    found, filled = allowed(matchers, 0)
    assert found == sorted([*EOS, *token_ids("b")])
    assert not filled.ended


def test_tokens_without_text_are_never_allowed(matchers):
    matchers.start(0, Grammar(form="regex", text="(?s:.)*"), [])
    found, _ = allowed(matchers, 0)
    assert set(EOS) <= set(found)
    assert max(found) < VOCAB_SIZE - 13


def test_everything_is_allowed_until_the_grammar_begins(matchers):
    start = token_ids("<|im_start|>")[0] if len(token_ids("<|im_start|>")) == 1 else 7
    grammar = Grammar(form="regex", text="ab", start_after_token_id=start)
    matchers.start(0, grammar, [9, 10])
    assert 9 not in EOS
    masks = np.zeros((3, matchers.num_words), np.int32)
    # A slot without a grammar, and a row that is not asked for.
    assert not matchers.fill([0, 5], masks).failures
    assert (masks[:2] == -1).all()
    assert not masks[2].any()
    matchers.advance([0], [11])
    matchers.advance([0], [start])
    # It begins anew after nothing else.
    first, _ = allowed(matchers, 0)
    matchers.start(1, grammar, [9, 10, 11, start])
    assert allowed(matchers, 1)[0] == first == allowed(matchers, 0)[0]
    assert set(first) <= {token for text in ("a", "ab") for token in token_ids(text)}


def test_replayed_tokens_give_the_undisturbed_masks(matchers):
    (output,) = generate([PERSON], temperature=1.5, max_tokens=60, seed=3)
    matchers.start(0, PERSON, [])
    for index, token_id in enumerate(output):
        matchers.start(1, PERSON, output[:index])
        undisturbed, replayed = allowed(matchers, 0), allowed(matchers, 1)
        assert undisturbed == replayed
        assert token_id in undisturbed[0]
        matchers.advance([0], [token_id])


def test_slots_are_separate_and_a_new_sequence_takes_a_slot_over(matchers):
    matchers.start(0, Grammar(form="regex", text="a+"), token_ids("a"))
    matchers.start(1, Grammar(form="regex", text="a+"), [])
    assert EOS[0] in allowed(matchers, 0)[0]
    assert EOS[0] not in allowed(matchers, 1)[0]
    matchers.start(0, Grammar(form="regex", text="b"), [])
    assert allowed(matchers, 0)[0] == token_ids("b")
    matchers.stop(0)
    matchers.stop(0)
    assert (0 in matchers, 1 in matchers, len(matchers)) == (False, True, 1)
    assert len(allowed(matchers, 0)[0]) == 32 * matchers.num_words


@pytest.mark.parametrize(
    ("grammar", "tokens", "words"),
    [
        (Grammar(form="regex", text="a("), [], "unclosed group"),
        (Grammar(form="regex", text="a"), token_ids("b"), "does not allow output token 0"),
        (Grammar(form=""), [], "has no form"),
    ],
)
def test_a_grammar_that_fails_says_so_and_allows_nothing(matchers, grammar, tokens, words):
    matchers.start(0, grammar, tokens)
    matchers.start(1, PERSON, [])
    matchers.advance([0], [5])
    masks = np.full((2, matchers.num_words), -1, np.int32)
    filled = matchers.fill([0, 1], masks)
    assert list(filled.failures) == [0]
    assert words in filled.failures[0].why
    assert filled.failures[0].why.isprintable()
    assert not masks[0].any()
    assert masks[1].any()


@pytest.mark.parametrize(
    ("tokens", "start_after", "index"),
    [
        (token_ids("b"), None, 0),
        ([*token_ids("a"), *token_ids("b"), *token_ids("c")], None, 2),
        # Nothing follows the end.
        ([*token_ids("a"), *token_ids("b"), EOS[0], *token_ids("b")], None, 3),
        ([9, 10, *token_ids("a"), *token_ids("c")], 10, 3),
        ([9, 10], 10, None),
        (token_ids("c"), 10, None),
        ([*token_ids("a"), *token_ids("b")], None, None),
    ],
)
def test_the_first_token_that_does_not_match_is_named(matchers, tokens, start_after, index):
    grammar = Grammar(form="regex", text="ab+", start_after_token_id=start_after)
    matchers.start(0, grammar, tokens)
    failures = allowed(matchers, 0)[1].failures
    assert {row: failure.mismatch_index for row, failure in failures.items()} == (
        {} if index is None else {0: index}
    )


def test_a_token_that_is_not_allowed_fails_the_slot(matchers):
    matchers.start(0, Grammar(form="regex", text="ab"), [])
    matchers.advance([0], [-1])
    assert not allowed(matchers, 0)[1].failures
    matchers.advance([0], token_ids("b"))
    found, filled = allowed(matchers, 0)
    assert found == []
    assert list(filled.failures) == [0]
    # It was drawn here, so it is no mistake of who asked.
    assert filled.failures[0].mismatch_index is None


def test_a_grammar_that_exceeds_a_limit_in_mid_stream_fails_clearly(matchers):
    matchers.start(0, Grammar(form="regex", text=".*a.{1000}b.{1000}c"), [])
    letters = [token_ids(letter)[0] for letter in "ax"]
    for index in range(3000):
        found, filled = allowed(matchers, 0)
        if filled.failures:
            break
        assert set(letters) <= set(found)
        matchers.advance([0], [letters[index * index % 7 % 2]])
    assert found == []
    assert "lexer" in filled.failures[0].why


def test_preparing_compiles_once(matchers):
    while not matchers.prepare(PERSON):
        pass
    assert matchers.prepare(PERSON)


def test_white_space_is_bounded(matchers):
    matchers.start(0, PERSON, token_ids("{"))
    space = token_ids(" ")
    matchers.advance([0], space)
    assert space[0] not in allowed(matchers, 0)[0]


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(form="regex", text="[a&&b]"),
        Grammar(form="lark", text="start: start"),
        Grammar(form="json_schema", text='{"$ref": "#"}'),
        Grammar(form="json_schema", text="false"),
        Grammar(form="json_schema", text=""),
        Grammar(form="json_schema", text='{"x-guidance": {"lenient": true}, "not": {}}'),
        Grammar(form="choice"),
        Grammar(form=""),
    ],
)
def test_what_allows_nothing_is_refused(grammar):
    with pytest.raises(BadGrammar):
        try_grammar(TOKENIZER, grammar)


@pytest.mark.parametrize(
    ("content", "vocab_size", "eos", "words"),
    [
        (TOKENIZER_JSON, VOCAB_SIZE, (), "no token ends a text"),
        (TOKENIZER_JSON, 100, (1,), "vocab size too small"),
        (b"{", 100, (1,), "cannot be used"),
        (b"gpt2", 100, (1,), "not a JSON object"),
        (b"\xff", 100, (1,), "not a JSON object"),
    ],
)
def test_unusable_tokenizers_are_named(content, vocab_size, eos, words):
    with pytest.raises(UnusableTokenizer, match=words):
        read_tokenizer(content, vocab_size, eos)


def test_a_sequence_starts_while_many_grammars_are_compiled(matchers, monkeypatch):
    release = threading.Event()
    prepared = Grammar(form="regex", text="a")
    matchers.start(0, prepared, [])
    masks = np.zeros((2, matchers.num_words), np.int32)
    matchers.fill([0], masks)
    assert matchers.prepare(prepared)

    def compile_late(tokenizer, grammar):
        assert release.wait(60)
        return compile_grammar(tokenizer, grammar)

    monkeypatch.setattr("engine_service.grammar.matchers.compile_grammar", compile_late)
    for count in range(8):
        assert not matchers.prepare(Grammar(form="regex", text=f"b{{{count + 1}}}"))
    matchers.start(1, prepared, [])
    with ThreadPoolExecutor(1) as thread:
        try:
            filled = thread.submit(matchers.fill, [0, 1], masks).result(timeout=30)
        finally:
            release.set()
    assert not filled.failures
    assert np.array_equal(masks[0], masks[1])
