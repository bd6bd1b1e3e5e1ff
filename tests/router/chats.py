"""Chats that become tokens in this process, without the worker that lays them out in a router."""

from transformers.utils.chat_template_utils import render_jinja_template

from router.types.prompts import ChatPrompt


def render(tokenizer, messages):
    """Returns what the tokenizer's chat template makes of messages."""
    template = tokenizer.chat_template
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    (text,), _ = render_jinja_template(
        conversations=[conversation],
        chat_template=template._source,
        add_generation_prompt=True,
        **template._special_tokens,
    )
    return text


def encode_chat(tokenizer, messages, *limits, allow_special_tokens=False):
    """Returns the token IDs of messages, as the pipeline gets them."""
    chat, marker = ChatPrompt(messages=tuple(messages)), ""
    if not allow_special_tokens:
        chat, marker = tokenizer.protect(chat)
    return tokenizer.encode_rendered(render(tokenizer, chat.messages), marker, *limits)
