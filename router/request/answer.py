"""What a client receives for the events of its request."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from protos.wire.sampling_params import end_token_ids
from router.text import detokenizer
from router.text.answer_form import AnswerForm
from router.text.containment import contained
from router.text.parsers.chat_parser import ChatParser, Parsed
from router.text.stop_texts import StopSearch
from router.text.tokenizer import Tokenizer
from router.types.engine_events import (
    Admitted,
    EngineEvent,
    Finished,
    FinishReason,
    PromptLogprobs,
    TokenLogprobs,
    TokenRequest,
    Tokens,
)
from router.types.engine_state import ModelInfo
from router.types.generation import Admission, Finish, GenerationDelta, ScoredTokens


class _NoTexts(dict[int, tuple[str, bytes]]):
    """The texts of a model without a tokenizer: all are empty."""

    def __missing__(self, token_id: int) -> tuple[str, bytes]:
        return "", b""


_NO_TEXTS = _NoTexts()


class Answer:
    """Converts the events of one request to an engine to the messages for its client.

    Args:
        request: The request.
        model: Its model.
        tokenizer: The model's tokenizer; without one, the answer has no text.
        form: What to expect of the answer to a chat; None if there is no chat.
        stop_search: Finds the stop texts of the request; needs a tokenizer.
    """

    def __init__(
        self,
        request: TokenRequest,
        model: ModelInfo,
        tokenizer: Tokenizer | None,
        form: AnswerForm | None = None,
        stop_search: StopSearch | None = None,
    ) -> None:
        self._request = request
        self._num_completion_tokens = 0
        self._num_reasoning_tokens = 0
        """Tokens that no delta has told of."""
        self._num_unread_tokens = 0
        """Tokens since the parser has made something of one."""
        self._detokenizer: detokenizer.Detokenizer | None = None
        if tokenizer is not None:
            self._detokenizer = contained(
                partial(
                    detokenizer.start,
                    tokenizer.backend,
                    tokenizer.token_bytes,
                    pieces=tokenizer.pieces,
                    prompt=request.prompt_token_ids if form is None or form.goes_on else (),
                )
            )
        self._tokenizer = tokenizer
        self._stop_search = stop_search
        self._parser = None if form is None else form.parser()
        self._has_one_call = form is not None and form.has_one_call
        self._tag_texts = tokenizer.tag_texts if tokenizer and self._parser else {}
        params = request.sampling_params
        self._stop_token_ids = end_token_ids(params, model.eos_token_ids)
        self._min_tokens = params.min_tokens or 0
        self._index = params.sample_index or 0

    def delta(self, event: EngineEvent) -> GenerationDelta:
        """Returns what an event adds to the client's output.

        A delta with `finish` is the last one. It may come before the engine's own end of the
        request, which then must be cancelled.
        """
        match event:
            case Tokens():
                if self._stop_search is not None:
                    return self._until_stop(event, self._stop_search)
                token_ids = event.token_ids
                self._num_completion_tokens += len(token_ids)
                if self._parser and self._parser.may_reason and len(token_ids) > 1:
                    # So that those of the reasoning can be counted.
                    texts = [self._text([token_id]) for token_id in token_ids]
                else:
                    texts = [self._text(token_ids)]
                return self._delta(texts, token_ids, event.logprobs)
            case Admitted():
                return GenerationDelta(admission=self._admission(event), index=self._index)
            case PromptLogprobs():
                return self._prompt_logprobs(event)
            case Finished():
                return self._end(event)

    def _text(self, token_ids: list[int]) -> str:
        if self._detokenizer is None:
            return ""
        # Only the last token of a request can be a stop token; it is not part of the text.
        if token_ids[-1] in self._stop_token_ids:
            token_ids = token_ids[:-1]
        if self._tag_texts and not self._tag_texts.keys().isdisjoint(token_ids):
            return self._text_with_tags(self._detokenizer, token_ids)
        return contained(self._detokenizer.push, token_ids)

    def _until_stop(self, event: Tokens, search: StopSearch) -> GenerationDelta:
        """Converts tokens one by one, up to the one that completes a stop text."""
        token_ids, logprobs = event.token_ids, event.logprobs
        texts = []
        for count, token_id in enumerate(token_ids, 1):
            self._num_completion_tokens += 1
            texts.append(search.push(self._text([token_id]), may_end=self._may_end))
            if search.found is not None:
                token_ids = token_ids[:count]
                logprobs = logprobs.part(0, count) if logprobs else None
                break
        finish = None if search.found is None else self._finish_by(search.found)
        return self._delta(texts, token_ids, logprobs, finish)

    def _text_with_tags(self, decoder: detokenizer.Detokenizer, token_ids: list[int]) -> str:
        """Returns the text of tokens, with tags that are special tokens, which end a character."""
        texts: list[str] = []
        start = 0
        for end, token_id in enumerate(token_ids):
            tag = self._tag_texts.get(token_id)
            if tag is not None:
                texts += (contained(decoder.push, token_ids[start:end]), contained(decoder.flush))
                texts.append(tag)
                start = end + 1
        return "".join((*texts, contained(decoder.push, token_ids[start:])))

    def _delta(
        self,
        texts: Sequence[str],
        token_ids: Sequence[int],
        logprobs: TokenLogprobs | None = None,
        finish: Finish | None = None,
    ) -> GenerationDelta:
        """Returns new output, with the text parsed that is the answer to a chat.

        Args:
            texts: Of each token, or of all together.
            token_ids: The tokens.
            logprobs: Of these.
            finish: The end, if it has come.
        """
        scored = None if logprobs is None else self._scored(token_ids, logprobs)
        if self._parser is None:
            return GenerationDelta(
                text="".join(texts),
                token_ids=tuple(token_ids),
                finish=finish,
                index=self._index,
                logprobs=scored,
            )
        parsed = self._parse(self._parser, texts, len(token_ids))
        if finish is not None:
            parsed += self._counted(self._parser.finish(), 0)
        num_reasoning_tokens, self._num_reasoning_tokens = self._num_reasoning_tokens, 0
        calls = parsed.tool_calls
        if self._parser.has_calls:
            if self._has_one_call:
                finish = finish or self._finish(FinishReason.TOOL_CALLS, None)
                calls = tuple(call for call in calls if not call.index)
            if finish is not None and finish.reason is FinishReason.STOP:
                finish = replace(finish, reason=FinishReason.TOOL_CALLS)
        return GenerationDelta(
            text=parsed.content,
            reasoning=parsed.reasoning,
            tool_calls=calls,
            token_ids=tuple(token_ids),
            num_reasoning_tokens=num_reasoning_tokens,
            finish=finish,
            index=self._index,
            logprobs=scored,
        )

    def _parse(self, parser: ChatParser, texts: Sequence[str], num_tokens: int) -> Parsed:
        if len(texts) == 1:
            return self._counted(parser.push(texts[0]), num_tokens)
        return sum((self._counted(parser.push(text), 1) for text in texts), Parsed())

    def _counted(self, parsed: Parsed, num_tokens: int) -> Parsed:
        """Counts the tokens that have led to something; those before may have been held back."""
        self._num_unread_tokens += num_tokens
        if parsed.reasoning:
            self._num_reasoning_tokens += self._num_unread_tokens
        if any(parsed):
            self._num_unread_tokens = 0
        return parsed

    @property
    def _may_end(self) -> bool:
        """Whether a stop text may end the text with the latest token."""
        return self._num_completion_tokens > self._min_tokens

    def _end(self, finished: Finished) -> GenerationDelta:
        text = contained(self._detokenizer.flush) if self._detokenizer else ""
        search = self._stop_search
        finish = self._finish(finished.reason, finished.stop_token_id)
        if search is not None:
            text = search.push(text, may_end=self._may_end) + search.flush()
            if search.found is not None:
                finish = self._finish_by(search.found)
        return self._delta([text], (), finish=finish)

    def _prompt_logprobs(self, event: PromptLogprobs) -> GenerationDelta:
        start = event.first_position
        token_ids = self._request.prompt_token_ids[start : start + len(event.logprobs.logprobs)]
        return GenerationDelta(
            index=self._index, prompt_logprobs=self._scored(token_ids, event.logprobs)
        )

    def _scored(self, token_ids: Sequence[int], logprobs: TokenLogprobs) -> ScoredTokens:
        texts = self._tokenizer.token_texts if self._tokenizer else _NO_TEXTS
        return ScoredTokens(token_ids=token_ids, logprobs=logprobs, texts=texts)

    def _admission(self, admitted: Admitted) -> Admission:
        return Admission(
            request_id=self._request.request_id,
            model=self._request.model,
            engine=admitted.engine,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_cached_tokens=admitted.num_cached_tokens,
            seed=admitted.seed,
            prompt_token_ids=self._request.prompt_token_ids,
        )

    def _finish(
        self, reason: FinishReason, stop_token_id: int | None, stop_text: str | None = None
    ) -> Finish:
        return Finish(
            reason=reason,
            stop_token_id=stop_token_id,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_completion_tokens=self._num_completion_tokens,
            stop_text=stop_text,
        )

    def _finish_by(self, stop_text: str) -> Finish:
        return self._finish(FinishReason.STOP, None, stop_text)
