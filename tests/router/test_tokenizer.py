import threading
import time

import pytest
import tokenizers
from transformers import AutoTokenizer

from protos.wire.reason import Reason
from router.errors import InvalidRequest, NoTokenizer
from router.tokenizer import Tokenizer
from router.types import ChatMessage
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

    token_ids = TOKENIZER.encode_chat(MESSAGES, allow_special_tokens=True)
    assert token_ids.tolist() == expected.input_ids


def test_chat_becomes_the_text_of_transformers_without_special_tokens_in_what_is_said(reference):
    conversation = [{"role": m.role, "content": m.content} for m in MESSAGES]
    text = reference.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)

    token_ids = TOKENIZER.encode_chat(MESSAGES).tolist()

    assert TOKENIZER.decode(token_ids, skip_special_tokens=False) == text
    assert token_ids.count(TOKENIZER.backend.token_to_id(small_tokenizer.END)) == len(MESSAGES)


def test_template_sees_the_special_tokens(tmp_path):
    files = small_tokenizer.files(chat_template="{{ eos_token }}{{ messages[0].content }}")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True
    )

    token_ids = Tokenizer.from_files(files).encode_chat((ChatMessage(role="user", content="hi"),))

    assert token_ids.tolist() == expected.input_ids
    assert token_ids[0] == TOKENIZER.backend.token_to_id(small_tokenizer.END)


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

    assert Tokenizer.from_files(files).encode_text(text).tolist() == backend.encode(text).ids


def test_truncation_left_in_the_file_is_not_applied():
    backend = Tokenizer.from_files(FILES).backend
    backend.enable_truncation(2)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_files({**FILES, "tokenizer.json": backend.to_str().encode()})

    text = "the quick brown fox " * 9

    assert tokenizer.encode_text(text) == TOKENIZER.encode_text(text)
    assert tokenizer.encode_chat(MESSAGES) == TOKENIZER.encode_chat(MESSAGES)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{% for %}", "refuses them"),
    ],
)
def test_template_that_raises_is_the_requests_error(template, message):
    tokenizer = Tokenizer.from_files(small_tokenizer.files(chat_template=template))

    with pytest.raises(InvalidRequest, match=message) as caught:
        tokenizer.encode_chat(MESSAGES)

    assert caught.value.status.reason == Reason.BAD_CHAT
    assert caught.value.status.metadata["value"] == "system, user, assistant, user"


def test_template_cannot_reach_python():
    template = "{{ messages.__class__.__mro__ }}{{ messages.append(1) }}"
    tokenizer = Tokenizer.from_files(small_tokenizer.files(chat_template=template))

    with pytest.raises(InvalidRequest):
        tokenizer.encode_chat(MESSAGES)


def test_missing_template_is_named():
    tokenizer = Tokenizer.from_files(small_tokenizer.files(chat_template=None))

    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        tokenizer.encode_chat(MESSAGES)

    assert caught.value.status.reason == Reason.BAD_CHAT


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


@pytest.mark.parametrize("encode", ["text", "chat"])
def test_long_text_leaves_the_interpreter_to_others(encode):
    text = "the quick brown fox " * 20_000
    prompt = text if encode == "text" else (ChatMessage(role="user", content=text),)
    is_done = threading.Event()
    num_turns = []

    def take_turns():
        while not is_done.is_set():
            num_turns.append(time.monotonic())
            time.sleep(0.001)

    other = threading.Thread(target=take_turns)
    other.start()
    start = time.monotonic()
    getattr(TOKENIZER, f"encode_{encode}")(prompt)
    end = time.monotonic()
    is_done.set()
    other.join()

    # Without a turn in the middle half, it stood still.
    quarter = (end - start) / 4
    assert any(start + quarter < turn < end - quarter for turn in num_turns)
