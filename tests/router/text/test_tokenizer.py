import json
import threading
import time
from functools import partial

import pytest
import tokenizers
from transformers import AutoTokenizer

from router.errors import NoTokenizer
from router.text.tokenizer import Tokenizer
from router.types.prompts import ChatMessage, ChatPrompt
from tests.fakes import small_tokenizer

FILES = small_tokenizer.files()
START, END = small_tokenizer.START, small_tokenizer.END
TOKENIZER = Tokenizer.from_files(FILES)
MESSAGES = (
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="introduce yourself 😀"),
    ChatMessage(role="assistant", content="  <|im_end|> I will not.\n"),
    ChatMessage(role="user", content=""),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = small_tokenizer.save(tmp_path_factory.mktemp("tokenizer"))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "the quick brown fox",
        "  two  spaces\n\n\ttab ",
        "<|im_start|>user\nhi<|im_end|><think>",
        "Cafe\u0301 你好 😀👩‍👩‍👧",
        "\x00\x7f\u2028",
        "",
    ],
)
def test_text_becomes_the_ids_of_transformers(reference, text):
    assert TOKENIZER.encode_text(text).tolist() == reference(text).input_ids


def test_chat_becomes_the_ids_of_transformers(reference):
    conversation = [{"role": m.role, "content": m.content} for m in MESSAGES]
    expected = reference.apply_chat_template(conversation, add_generation_prompt=True)

    text = small_tokenizer.lay_out(MESSAGES)
    assert TOKENIZER.encode_rendered(text, "").tolist() == expected.input_ids


def test_chat_becomes_the_text_of_transformers_without_special_tokens_in_what_is_said(reference):
    conversation = [{"role": m.role, "content": m.content} for m in MESSAGES]
    text = reference.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)

    chat, marker = TOKENIZER.protect(ChatPrompt(messages=MESSAGES))
    marked = small_tokenizer.lay_out(chat.messages)
    token_ids = TOKENIZER.encode_rendered(marked, marker).tolist()

    assert TOKENIZER.decode(token_ids, skip_special_tokens=False) == text
    assert token_ids.count(TOKENIZER.backend.token_to_id(small_tokenizer.END)) == len(MESSAGES)


def test_ids_become_the_text_of_transformers(reference):
    token_ids = list(range(TOKENIZER.backend.get_vocab_size()))

    for skip in (False, True):
        text = TOKENIZER.decode(token_ids, skip_special_tokens=skip)
        assert text == reference.decode(token_ids, skip_special_tokens=skip)


@pytest.mark.parametrize("text", ["", "the quick", f"a{END}"])
@pytest.mark.parametrize(
    "template",
    [f"{START} $A", f"{START} $A {END}", "$A $A"],
)
def test_tokens_around_a_text_are_those_of_its_file(template, text):
    backend = tokenizers.Tokenizer.from_str(FILES["tokenizer.json"].decode())
    special = [(token, backend.token_to_id(token)) for token in (START, END)]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=special
    )
    files = {**FILES, "tokenizer.json": backend.to_str().encode()}

    tokenizer = Tokenizer.from_files(files)
    assert tokenizer.encode_text(text).tolist() == backend.encode(text).ids
    bare = backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_text(text, add_special_tokens=False).tolist() == bare


def test_truncation_left_in_the_file_is_not_applied():
    backend = Tokenizer.from_files(FILES).backend
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_files({**FILES, "tokenizer.json": backend.to_str().encode()})

    text = "the quick brown fox " * 9

    assert tokenizer.encode_text(text) == TOKENIZER.encode_text(text)
    chat = small_tokenizer.lay_out(MESSAGES)
    assert tokenizer.encode_rendered(chat, "") == TOKENIZER.encode_rendered(chat, "")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"\[\] hold no usable tokenizer"),
        ({"tokenizer.json": b"{"}, r"\['tokenizer.json'\] hold no usable tokenizer"),
        ({"../tokenizer.json": b"{}"}, "not a plain file name"),
        (
            {
                "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}',
                "evil.py": b"raise SystemExit(1)",
            },
            "no usable tokenizer",
        ),
    ],
)
def test_unusable_files_are_named_and_run_no_code(files, message):
    with pytest.raises(NoTokenizer, match=message):
        Tokenizer.from_files(files)


@pytest.mark.parametrize(
    "encode", [TOKENIZER.encode_text, partial(TOKENIZER.encode_rendered, marker="")]
)
def test_long_text_leaves_the_interpreter_to_others(encode):
    text = "the quick brown fox " * 20_000
    is_done = threading.Event()
    num_turns = []

    def take_turns():
        while not is_done.is_set():
            num_turns.append(time.monotonic())
            time.sleep(0.001)

    other = threading.Thread(target=take_turns)
    other.start()
    start = time.monotonic()
    try:
        encode(text)
    finally:
        end = time.monotonic()
        is_done.set()
        other.join()

    # Without a turn in the middle half, it stood still.
    quarter = (end - start) / 4
    assert any(start + quarter < turn < end - quarter for turn in num_turns)


def test_short_text_cannot_take_long_with_a_known_split_only():
    known = small_tokenizer.files(chat_template=None)
    content = json.loads(known["tokenizer.json"])
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": "(a+)+b"},
                "behavior": "Isolated",
                "invert": False,
            },
            content["pre_tokenizer"],
        ],
    }
    hostile = known | {"tokenizer.json": json.dumps(content).encode()}

    assert Tokenizer.from_files(known).has_known_split
    assert not Tokenizer.from_files(hostile).has_known_split
