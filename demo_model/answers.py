"""Greedy answers to held-out questions: from a running router, and from transformers."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo_model.conversation import Conversation
from protos.pagestream.router.v1 import router_pb2, router_pb2_grpc
from protos.wire.channel import client_options

MAX_TOKENS = 256
"""More than the longest right answer has."""
_MAX_CALLS = 64
_CALL_TIMEOUT = 600.0
_MAX_BATCH_SIZE = 32
_MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Attributes:
        text: Without the end-of-turn token.
        has_ended: Whether it ended by that token or a stop text, not at its greatest length.
    """

    text: str
    has_ended: bool


async def ask_router(
    address: str,
    conversations: Sequence[Conversation],
    params: Sequence[router_pb2.SamplingParams] | None = None,
) -> list[Answer]:
    """Sends the questions as chats, 64 at a time, and returns the answers in their order.

    Args:
        address: Of the router.
        conversations: The questions.
        params: How to ask each; None asks for greedy answers.

    Raises:
        grpc.aio.AioRpcError: A request failed; the others are cancelled.
    """
    limit = asyncio.Semaphore(_MAX_CALLS)
    async with grpc.aio.insecure_channel(address, options=client_options()) as channel:
        stub = router_pb2_grpc.RouterServiceStub(channel)  # type: ignore[no-untyped-call]

        async def ask(conversation: Conversation, how: router_pb2.SamplingParams) -> Answer:
            async with limit:
                return await _ask(stub, conversation, how)

        greedy = router_pb2.SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
        hows = params or [greedy] * len(conversations)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(ask(conversation, how))
                for conversation, how in zip(conversations, hows, strict=True)
            ]
    return [task.result() for task in tasks]


async def _ask(
    stub: router_pb2_grpc.RouterServiceStub,
    conversation: Conversation,
    params: router_pb2.SamplingParams,
) -> Answer:
    messages = [
        router_pb2.ChatMessage(role=message.role, content=message.content)
        for message in conversation.question
    ]
    request = router_pb2.GenerateRequest(
        chat=router_pb2.Chat(messages=messages),
        sampling_params=params,
    )
    text = ""
    reason = router_pb2.FINISH_REASON_UNSPECIFIED
    async for response in stub.Generate(request, timeout=_CALL_TIMEOUT):
        text += response.text
        if response.HasField("finish"):
            reason = response.finish.reason
    return Answer(text, reason == router_pb2.FINISH_REASON_STOP)


def ask_transformers(
    folder: Path, conversations: Sequence[Conversation], device: str
) -> list[Answer]:
    """Returns the answers of transformers' generate in float32, in the order of the questions."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.padding_side = "left"
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(torch.device(device))
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": one.role, "content": one.content} for one in conversation.question],
            add_generation_prompt=True,
            tokenize=False,
        )
        for conversation in conversations
    ]
    answers: dict[int, Answer] = {}
    for indices in _batches([len(tokenizer(prompt).input_ids) for prompt in prompts]):
        generated = _generate(model, tokenizer, [prompts[index] for index in indices])
        answers.update(zip(indices, generated, strict=True))
    return [answers[index] for index in range(len(conversations))]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields the indices of prompts of like length, within the limits of a batch."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        # The lengths ascend, so this one would be that of all.
        num_tokens = (len(batch) + 1) * (lengths[index] + MAX_TOKENS)
        if batch and (len(batch) == _MAX_BATCH_SIZE or num_tokens > _MAX_BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _generate(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]
) -> list[Answer]:
    inputs = tokenizer(prompts, padding=True, return_tensors="pt").to(model.device)
    # Some releases of transformers type it so that no model can call it.
    generate: Any = model.generate
    rows = generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
    generated = rows[:, inputs["input_ids"].shape[1] :].tolist()
    return [
        Answer(
            str(tokenizer.decode(token_ids, skip_special_tokens=True)),
            tokenizer.eos_token_id in token_ids,
        )
        for token_ids in generated
    ]
