"""What a client receives for the events of its request."""

from functools import partial

from router.text import detokenizer
from router.text.answer_form import AnswerForm
from router.text.containment import contained
from router.text.tokenizer import Tokenizer
from router.types import (
    Admission,
    Admitted,
    EngineEvent,
    Finish,
    Finished,
    FinishReason,
    GenerationDelta,
    ModelInfo,
    PromptLogprobs,
    TokenRequest,
    Tokens,
)


class Answer:
    """Converts the events of one request to the messages for its client."""

    def __init__(
        self,
        request: TokenRequest,
        model: ModelInfo,
        tokenizer: Tokenizer | None,
        form: AnswerForm | None = None,
    ) -> None:
        """Prepares for the events of a request.

        Args:
            request: The request.
            model: The model.
            tokenizer: Its tokenizer; without one, the answer has no text.
            form: What to expect of the answer to a chat; None if there is no chat.
        """
        self._request = request
        self._num_completion_tokens = 0
        self._detokenizer: detokenizer.Detokenizer | None = None
        if tokenizer is not None:
            self._detokenizer = contained(
                partial(
                    detokenizer.start,
                    tokenizer.backend,
                    tokenizer.token_bytes,
                    pieces=tokenizer.pieces,
                    prompt=request.prompt_token_ids if form is None else (),
                )
            )
        self._parser = None if form is None else form.parser()
        self._tag_texts = tokenizer.tag_texts if tokenizer and self._parser else {}
        params = request.sampling_params
        eos_token_ids = frozenset() if params.ignore_eos else model.eos_token_ids
        self._stop_token_ids = eos_token_ids.union(params.stop_token_ids)

    def delta(self, event: EngineEvent) -> GenerationDelta:
        """Returns what an event adds to the client's output."""
        match event:
            case Tokens(token_ids=token_ids):
                self._num_completion_tokens += len(token_ids)
                text = self._text(token_ids)
                if self._parser is None:
                    return GenerationDelta(text=text, token_ids=tuple(token_ids))
                parsed = self._parser.push(text)
                return GenerationDelta(
                    text=parsed.content,
                    reasoning=parsed.reasoning,
                    tool_calls=parsed.tool_calls,
                    token_ids=tuple(token_ids),
                )
            case Admitted():
                return GenerationDelta(admission=self._admission(event))
            case PromptLogprobs():
                return GenerationDelta()
            case Finished():
                text = contained(self._detokenizer.flush) if self._detokenizer else ""
                if self._parser is None:
                    return GenerationDelta(text=text, finish=self._finish(event))
                parsed = self._parser.finish(text)
                return GenerationDelta(
                    text=parsed.content,
                    reasoning=parsed.reasoning,
                    tool_calls=parsed.tool_calls,
                    finish=self._finish(event),
                )

    def _text(self, token_ids: list[int]) -> str:
        if self._detokenizer is None:
            return ""
        # Only the last token of a request can be a stop token; it is not part of the text.
        if token_ids[-1] in self._stop_token_ids:
            token_ids = token_ids[:-1]
        if self._tag_texts and not self._tag_texts.keys().isdisjoint(token_ids):
            return self._text_with_tags(self._detokenizer, token_ids)
        return contained(self._detokenizer.push, token_ids)

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

    def _admission(self, admitted: Admitted) -> Admission:
        return Admission(
            request_id=self._request.request_id,
            model=self._request.model,
            engine=admitted.engine,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_cached_tokens=admitted.num_cached_tokens,
            seed=admitted.seed,
        )

    def _finish(self, finished: Finished) -> Finish:
        reason = finished.reason
        if reason is FinishReason.STOP and self._parser is not None and self._parser.has_calls:
            reason = FinishReason.TOOL_CALLS
        return Finish(
            reason=reason,
            stop_token_id=finished.stop_token_id,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_completion_tokens=self._num_completion_tokens,
        )
