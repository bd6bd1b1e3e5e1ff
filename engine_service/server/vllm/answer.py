"""Makes the messages of a Generate call of the vLLM service from the outputs of its requests."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_service.core.logprobs import StepLogprobs
from engine_service.core.types import Finish, FinishReason, Request, int32_array
from engine_service.server.output_stream import OutputBatch
from engine_service.server.vllm.message import Message
from engine_service.server.vllm.stop_texts import StopTexts

if TYPE_CHECKING:
    from array import array

_FINISH_REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
_ABORTED = "abort"


@dataclass(slots=True)
class _Sample:
    """What is known of one request, and what was not sent yet."""

    request: Request
    token_ids: "array[int]"
    """All of them."""
    num_cached_tokens: int = 0
    logprobs: StepLogprobs | None = None
    """Those not sent."""
    prompt_logprobs: StepLogprobs | None = None
    """Those of the prompt, until they are sent."""
    stop_texts: StopTexts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How a sample ended."""

    reason: str
    matched: "dict[str, int | str]" = field(default_factory=dict)
    """The stop token or stop text of the request, by the name of its field."""


class Answer:
    """One call's answer; a sample's index is its handle in the stream.

    Args:
        requests: Those of the call, by index.
        is_streamed: Whether tokens are sent as they come; else there is one message for a sample.
        stop_texts: Returns the texts that end a sample, if there are any.
        cancel: Called with the handle of a request that such a text has ended.
    """

    def __init__(
        self,
        requests: list[Request],
        *,
        is_streamed: bool,
        stop_texts: Callable[[], StopTexts | None] = lambda: None,
        cancel: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._is_streamed = is_streamed
        self._cancel = cancel
        self._open = {
            index: _Sample(request=request, token_ids=int32_array(), stop_texts=stop_texts())
            for index, request in enumerate(requests)
        }

    @property
    def is_complete(self) -> bool:
        """Whether the end of all samples was told."""
        return not self._open

    def messages(self, batch: OutputBatch) -> Iterator[Message]:
        """Takes in outputs and yields what the client gets of them."""
        for handle, admission in batch.admissions:
            self._open[handle].num_cached_tokens = admission.num_cached_tokens
        for handle, prompt in batch.prompt_logprobs.items():
            sample = self._open[handle]
            sample.prompt_logprobs = _joined(sample.prompt_logprobs, prompt.logprobs)
        for handle, logprobs in batch.logprobs.items():
            sample = self._open[handle]
            sample.logprobs = _joined(sample.logprobs, logprobs)
        start = 0
        for handle, count in zip(batch.handles, batch.token_counts, strict=True):
            token_ids = batch.token_ids[start : start + count]
            start += count
            yield from self._take(handle, token_ids)
        for handle, finish in batch.finishes:
            if handle in self._open:
                yield self._complete(handle, _end_of(self._open[handle].request, finish))

    def abortion(self) -> Iterator[Message]:
        """Yields the end of the samples that are still open, which were aborted."""
        for handle, sample in list(self._open.items()):
            sample.prompt_logprobs = None  # They may be incomplete.
            yield self._complete(handle, _End(reason=_ABORTED))

    def _take(self, handle: int, token_ids: "array[int]") -> Iterator[Message]:
        sample = self._open[handle]
        match = None if sample.stop_texts is None else sample.stop_texts.find(token_ids)
        if match is not None:
            num_dropped = len(token_ids) - match.num_tokens
            token_ids = token_ids[: match.num_tokens]
            if sample.logprobs is not None:
                sample.logprobs = sample.logprobs.part(0, len(sample.logprobs) - num_dropped)
        sample.token_ids.extend(token_ids)
        if self._is_streamed:
            yield self._chunk(handle, token_ids)
        if match is not None:
            self._cancel(handle)
            yield self._complete(
                handle, _End(reason="stop", matched={"matched_stop_str": match.text})
            )

    def _chunk(self, index: int, token_ids: "array[int]") -> Message:
        sample = self._open[index]
        chunk = pb.GenerateStreamChunk(
            token_ids=token_ids,
            prompt_tokens=len(sample.request.prompt_token_ids),
            completion_tokens=len(token_ids),
            cached_tokens=sample.num_cached_tokens,
            index=index,
        )
        _move_logprobs(sample, token_ids, chunk)
        return pb.GenerateResponse(chunk=chunk)

    def _complete(self, index: int, end: _End) -> Message:
        sample = self._open.pop(index)
        complete = pb.GenerateComplete(
            output_ids=sample.token_ids,
            finish_reason=end.reason,
            prompt_tokens=len(sample.request.prompt_token_ids),
            completion_tokens=len(sample.token_ids),
            cached_tokens=sample.num_cached_tokens,
            index=index,
            **end.matched,
        )
        _move_logprobs(sample, sample.token_ids, complete)
        return pb.GenerateResponse(complete=complete)


def _end_of(request: Request, finish: Finish) -> _End:
    matched: dict[str, int | str] = {}
    stop_token_id = finish.stop_token_id
    # The end of a text by the model's own token matches nothing that was asked for.
    if stop_token_id is not None and stop_token_id in request.sampling_params.stop_token_ids:
        matched["matched_token_id"] = stop_token_id
    return _End(reason=_FINISH_REASONS[finish.reason], matched=matched)


def _move_logprobs(sample: _Sample, token_ids: "array[int]", message: Message) -> None:
    """Writes the logprobs that were not sent yet, those of `token_ids` and of the prompt."""
    if sample.logprobs is not None:
        output = message.output_logprobs
        output.token_logprobs.extend(sample.logprobs.logprobs)
        output.token_ids.extend(token_ids)
        _fill_top(output.top_logprobs, sample.logprobs)
        sample.logprobs = None
    if sample.prompt_logprobs is not None:
        prompt = message.input_logprobs
        prompt.token_ids.extend(sample.request.prompt_token_ids)
        # The first token has none.
        prompt.token_logprobs.add()
        for logprob in sample.prompt_logprobs.logprobs:
            prompt.token_logprobs.add(value=logprob)
        if sample.prompt_logprobs.width:
            prompt.top_logprobs.add()
        _fill_top(prompt.top_logprobs, sample.prompt_logprobs)
        sample.prompt_logprobs = None


def _fill_top(rows: Message, logprobs: StepLogprobs) -> None:
    width = logprobs.width
    for start in range(0, len(logprobs.top_token_ids), width or 1):
        rows.add(
            token_ids=logprobs.top_token_ids[start : start + width],
            values=logprobs.top_logprobs[start : start + width],
        )


def _joined(earlier: StepLogprobs | None, later: StepLogprobs) -> StepLogprobs:
    if earlier is None:
        return later
    earlier.extend(later)
    return earlier
