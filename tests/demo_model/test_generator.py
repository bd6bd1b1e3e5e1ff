"""Conversations are right, repeatable, of one meaning, and some contents are kept from training."""

import json
import re
from collections import Counter, defaultdict
from itertools import islice
from random import Random

import pytest
import transformers

from demo_model.answers import MAX_TOKENS
from demo_model.conversation import render
from demo_model.draw import Draw, is_held_out
from demo_model.generator import TASKS, conversations, questions
from demo_model.tasks.primes import HELD_OUT_LIMITS
from demo_model.tokenizer import MAX_MODEL_LEN
from examples.demo.model import CHECKPOINT

NUM_TRAINING = 6000
each_split = pytest.mark.parametrize("held_out", [False, True], ids=["training", "held out"])


@pytest.fixture(scope="module")
def training():
    return list(islice(conversations("test"), NUM_TRAINING))


@pytest.fixture(scope="module")
def held_out():
    return questions("test", 1000)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)


def draws(name, held_out, count=300):
    """Returns questions with answers, the last ones of so many dialogues of a task."""
    draw = Draw(Random(name), held_out=held_out)
    return [TASKS[name].make(draw).exchanges[-1] for _ in range(count)]


def test_equal_seeds_give_equal_conversations_and_others_others():
    first, again, other = (list(islice(conversations(seed), 50)) for seed in ("a", "a", "b"))
    assert first == again
    assert first != other
    assert questions("a", 36) == questions("a", 36) != questions("b", 36)


def test_tasks_take_turns_in_the_evaluation(held_out):
    counts = Counter(conversation.task for conversation in held_out)
    assert set(counts) == set(TASKS)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_conversations_are_whole(training, held_out):
    for conversation in training + held_out:
        roles = [message.role for message in conversation.messages]
        if roles[0] == "system":
            del roles[0]
        assert set(roles[1::2]) == {"assistant"}
        assert set(roles[::2]) <= {"user", "tool"}
        assert roles[-1] == "assistant"
        assert all(message.content for message in conversation.messages)


def test_some_have_a_system_prompt_and_some_several_turns(training):
    num_system = sum(one.messages[0].role == "system" for one in training)
    num_long = sum(len(one.messages) > 3 for one in training)
    assert 0.3 < num_system / NUM_TRAINING < 0.8
    assert 0.3 < num_long / NUM_TRAINING < 0.8


def test_equal_questions_have_equal_answers(training):
    """With nothing said before them, that is, and no tools or schema in a system prompt."""
    answers = defaultdict(set)
    for conversation in training:
        first, *rest = conversation.messages
        if first.role == "system":
            if "Tools" in first.content or "JSON" in first.content:
                continue
            first, *rest = rest
        answers[first.content.lower().rstrip(".?! ")].add(rest[0].content)
    assert [both for both in answers.items() if len(both[1]) > 1] == []


def test_layout_is_that_of_the_chat_template(training, tokenizer):
    for conversation in training[:300]:
        messages = [{"role": one.role, "content": one.content} for one in conversation.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert render(conversation.messages) == text


def test_every_conversation_fits_the_context(training, held_out, tokenizer):
    texts = [render(one.messages) for one in training + held_out if one.task == "find"]
    longest = max(len(tokenizer(text).input_ids) for text in texts)
    # Texts are up to some 3,000 tokens long; around them are system prompt and other turns.
    assert 2700 < longest < MAX_MODEL_LEN - MAX_TOKENS


# What training has of these, the evaluation asks again: they cannot be told from others by content.
SHARED = {"introduction", "facts", "unknown"}


def test_no_held_out_question_is_in_the_training(training, held_out):
    asked = {
        (message.content, answer.content)
        for conversation in training
        for message, answer in zip(conversation.messages, conversation.messages[1:], strict=False)
        if message.role != "assistant"
    }
    seen = Counter(one.task for one in held_out if (one.question[-1].content, one.answer) in asked)
    # "What is my name?" means another thing with another name told before.
    assert set(seen) <= SHARED | {"remember", "find"}


@each_split
@pytest.mark.parametrize("task", ["add", "subtract"])
def test_sums_and_differences_are_right_and_of_their_split(task, held_out):
    for exchange in draws(task, held_out):
        one, sign, other, result = re.fullmatch(
            r"(\d+) ([+-]) (\d+) = (-?\d+)", exchange.answer
        ).groups()
        one, other = int(one), int(other)
        assert int(result) == (one + other if sign == "+" else one - other)
        assert sorted(map(int, re.findall(r"\d+", exchange.question))) == sorted((one, other))
        assert max(one, other) <= 999
        assert is_held_out((one, other)) == held_out


@each_split
def test_comparisons_are_right_and_of_their_split(held_out):
    for exchange in draws("compare", held_out):
        one, other = map(int, re.findall(r"\d+", exchange.question))
        assert max(one, other) <= 9999
        assert is_held_out((one, other)) == held_out
        if "equal" in exchange.answer:
            assert one == other
            continue
        first, word, second = re.fullmatch(
            r"(?:Yes, |No, )?(\d+) is (?:not )?(\w+) than (\d+)\.", exchange.answer
        ).groups()
        is_so = int(first) > int(second) if word[0] in "lgb" and word != "less" else first != second
        if word in ("smaller", "less"):
            is_so = int(first) < int(second)
        assert is_so == (" not " not in exchange.answer)
        assert exchange.answer.startswith("No") == (" not " in exchange.answer)
        assert {int(first), int(second)} == {one, other}


@each_split
def test_primes_are_right_and_of_their_split(held_out):
    for exchange in draws("primes", held_out):
        limit, *listed = map(int, re.findall(r"\d+", exchange.answer))
        sieve = set(range(2, limit + 1))
        for divisor in range(2, limit + 1):
            sieve -= set(range(2 * divisor, limit + 1, divisor))
        assert listed == sorted(sieve)
        assert str(limit) in exchange.question
        assert (limit in HELD_OUT_LIMITS) == held_out
        assert 2 <= limit <= 100


@each_split
def test_counts_are_right(held_out):
    for exchange in draws("count", held_out):
        counted = list(map(int, exchange.answer.split(", ")))
        step = 1 if counted[-1] > counted[0] else -1
        assert counted == list(range(counted[0], counted[-1] + step, step))
        assert str(counted[-1]) in exchange.question
        assert 2 <= len(counted) <= 20
        assert is_held_out((counted[0], counted[-1])) == held_out


@each_split
def test_lists_are_sorted_and_reversed(held_out):
    for exchange in draws("sort numbers", held_out):
        given = list(map(int, re.findall(r"\d+", exchange.question)))
        is_descending = bool(re.search("descending|largest first|largest to", exchange.question))
        answer = list(map(int, exchange.answer.split(", ")))
        assert answer == sorted(given, reverse=is_descending)
        assert 3 <= len(answer) <= 8
    for exchange in draws("sort words", held_out):
        answer = exchange.answer.split(", ")
        assert answer == sorted(answer)
        assert all(word in exchange.question for word in answer)
        assert 3 <= len(answer) <= 8
    for exchange in draws("reverse", held_out):
        is_list = "," in exchange.answer
        parts = exchange.answer.split(", " if is_list else " ")
        assert (", " if is_list else "").join(reversed(parts)) in exchange.question
        assert 3 <= len(parts) <= 10


@each_split
def test_letters_and_words_are_told_right(held_out):
    for exchange in draws("spell", held_out):
        word = exchange.answer.replace(" ", "")
        assert " ".join(word) == exchange.answer
        assert word in exchange.question
        if held_out:
            assert is_held_out(word)
    for exchange in draws("count words", held_out):
        (number,) = re.findall(r"\d+", exchange.answer)
        # The sentence is what stands behind the colon or within the quotes.
        text = re.search(r': (.*)$|"(.*)"', exchange.question)
        assert len((text[1] or text[2]).split()) == int(number)
    for exchange in draws("repeat", held_out):
        assert exchange.answer in exchange.question
        assert is_held_out(exchange.answer) == held_out


@each_split
def test_found_facts_are_in_the_text_and_strangers_are_not(held_out):
    draw = Draw(Random(0), held_out=held_out)
    num_unknown = 0
    for _ in range(100):
        exchanges = TASKS["find"].make(draw).exchanges
        said = " ".join(one.question for one in exchanges)
        for exchange in exchanges:
            if exchange.answer == "I do not know.":
                num_unknown += 1
            elif exchange.answer != "I have read the text.":
                assert exchange.answer in said
    assert num_unknown > 0


@each_split
def test_json_has_the_keys_of_the_schema_in_their_order(held_out):
    draw = Draw(Random(0), held_out=held_out)
    for _ in range(300):
        dialogue = TASKS["json"].make(draw)
        (exchange,) = dialogue.exchanges
        values = json.loads(exchange.answer)
        schema = dialogue.system or exchange.question
        places = [schema.rindex(f'"{key}"') if f'"{key}"' in schema else -1 for key in values]
        assert places == sorted(places)
        assert all(str(value) in exchange.question for value in values.values())
        assert dialogue.stands_alone == bool(dialogue.system)


@each_split
def test_tool_calls_name_an_offered_tool_with_its_arguments(held_out):
    draw = Draw(Random(0), held_out=held_out)
    kinds = Counter()
    for _ in range(300):
        dialogue = TASKS["tools"].make(draw)
        listed = re.search(r"<tools>\n(\{.*\})\n</tools>", dialogue.system, re.DOTALL)[1]
        offered = {
            one["function"]["name"]: one["function"]["parameters"]
            for one in map(json.loads, listed.splitlines())
        }
        first, *then = dialogue.exchanges
        if first.answer == "I have no tool for that.":
            kinds["none"] += 1
            continue
        call = json.loads(re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", first.answer)[1])
        assert list(call["arguments"]) == offered[call["name"]]["required"]
        for exchange in then:
            kinds["result"] += 1
            assert exchange.role == "tool"
            assert all(str(v) in exchange.answer for v in json.loads(exchange.question).values())
    assert kinds["none"] > 0
    assert kinds["result"] > 50


def test_what_was_told_last_is_remembered():
    draw = Draw(Random(0), held_out=False)
    for _ in range(300):
        *told, asked = TASKS["remember"].make(draw).exchanges
        if asked.answer == "I do not know.":
            continue
        value = re.search(r"(\w+)(?: years old)?\.$", asked.answer)[1]
        assert any(re.search(rf"\b{value}\b", one.question) for one in told)


def test_held_out_questions_never_run_dry():
    # Among these a single thing is told of which every value belongs to the training.
    draw = Draw(Random(0), held_out=True)
    for _ in range(5000):
        TASKS["remember"].make(draw)
