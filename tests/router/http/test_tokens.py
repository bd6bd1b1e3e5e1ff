"""POST /tokenize and /detokenize."""

from pathlib import Path

import pytest

from router.http.tokens import DetokenizeFields, TokenizeFields
from tests.fakes import small_tokenizer
from tests.fakes.fake_fleet import FakeFleet
from tests.router.http.serving import client_of
from tests.router.pipelines import END, TOKENIZER, chat, fleet_without_chats

DOCS = Path(__file__).parents[3] / "docs/http/completions.md"


async def test_text_becomes_tokens_and_text_again():
    tokens = TOKENIZER.encode_text(f"é the{small_tokenizer.END}").tolist()
    async with client_of(fleet_without_chats()) as client:
        body = {"model": "small", "prompt": f"é the{small_tokenizer.END}"}
        answer = (await client.post("/tokenize", json=body)).json()
        named = (await client.post("/tokenize", json={**body, "return_token_strs": True})).json()
        text = (await client.post("/detokenize", json={"tokens": tokens})).json()

    assert END in tokens
    expected = {"count": len(tokens), "max_model_len": 128, "tokens": tokens, "token_strs": None}
    assert answer == expected
    assert named["token_strs"] == [TOKENIZER.backend.id_to_token(token) for token in tokens]
    assert text == {"prompt": f"é the{small_tokenizer.END}"}


async def test_conversation_becomes_the_tokens_that_a_chat_starts_from():
    laid_out = small_tokenizer.lay_out(chat(("user", "hi")).messages)
    async with client_of(FakeFleet()) as client:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        answer = (await client.post("/tokenize", json=body)).json()
        parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
        same = (await client.post("/tokenize", json=parts)).json()
        body |= {"add_generation_prompt": False, "chat_template_kwargs": {"any": [1]}}
        shorter = (await client.post("/tokenize", json=body)).json()

    assert answer["tokens"] == same["tokens"] == TOKENIZER.encode_rendered(laid_out, "").tolist()
    assert 0 < shorter["count"] < answer["count"]


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("/tokenize", b"{}", "neither prompt nor messages are given; send one"),
        ("/tokenize", b'{"prompt": "a", "messages": []}', "both prompt and messages are given"),
        ("/tokenize", b'{"prompt": ""}', "prompt is empty"),
        ("/tokenize", b'{"prompt": "a", "tools": []}', "tools is set; it must be unset unless"),
        ("/tokenize", b'{"prompt": "a", "add_special_tokens": 1}', "add_special_tokens is 1"),
        ("/tokenize", b'{"messages": []}', "messages has 0 entries, outside 1 to"),
        (
            "/tokenize",
            b'{"messages": [{"role": "me", "content": "a"}]}',
            "messages[0].role is ",
        ),
        (
            "/tokenize",
            b'{"messages": [], "add_special_tokens": true}',
            "add_special_tokens is true; it must be unset or false with messages",
        ),
        (
            "/tokenize",
            b'{"messages": [], "chat_template_kwargs": {"a": NaN}}',
            "chat_template_kwargs is",
        ),
        (
            "/tokenize",
            b'{"messages": [], "chat_template_kwargs": {"a": ' + b"[" * 80 + b"]" * 80 + b"}}",
            "chat_template_kwargs has 81 levels",
        ),
        ("/detokenize", b"{}", "tokens is missing"),
        ("/detokenize", b'{"tokens": "a"}', "tokens is a: input"),
        ("/detokenize", b'{"tokens": "1"}', 'tokens is "1": input should be a valid array'),
        ("/detokenize", b"", "the body is empty; it must be a JSON object"),
        ("/detokenize", b'{"tokens": [1, -2]}', "tokens[1] is -2; it must be a token ID"),
        ("/detokenize", b'{"tokens": [1, true]}', "tokens[1] is True"),
        ("/detokenize", b'{"tokens": [600]}', "tokens[0] is 600, outside 0 to 599"),
        ("/detokenize", b'{"tokens": [1], "token_ids": [1]}', "token_ids is not a field"),
        ("/detokenize", b'{"tokens": "\xff"}', "no JSON object that can be read"),
    ],
)
async def test_wrong_field_is_named(path, content, message):
    async with client_of(fleet_without_chats()) as client:
        answer = await client.post(path, content=content)

    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_all_fields_are_in_the_docs():
    text = DOCS.read_text()
    fields = [*TokenizeFields.model_fields, *DetokenizeFields.model_fields]
    assert [name for name in fields if f"`{name}`" not in text] == []
