"""What a client receives for the events of its request."""

from functools import partial

from router.text import detokenizer
from router.text.containment import contained
from router.text.tokenizer import Tokenizer
from router.types import (
    Admission,
    Admitted,
    EngineEvent,
    Finish,
    Finished,
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
        *,
        is_chat: bool,
    ) -> None:
        """Prepares for the events of a request; without a tokenizer, the answer has no text."""
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
                    prompt=() if is_chat else request.prompt_token_ids,
                )
            )
        params = request.sampling_params
        eos_token_ids = frozenset() if params.ignore_eos else model.eos_token_ids
        self._stop_token_ids = eos_token_ids.union(params.stop_token_ids)

    def delta(self, event: EngineEvent) -> GenerationDelta:
        """Returns what an event adds to the client's output."""
        match event:
            case Tokens(token_ids=token_ids):
                self._num_completion_tokens += len(token_ids)
                return GenerationDelta(text=self._text(token_ids), token_ids=tuple(token_ids))
            case Admitted():
                return GenerationDelta(admission=self._admission(event))
            case PromptLogprobs():
                return GenerationDelta()
            case Finished():
                text = contained(self._detokenizer.flush) if self._detokenizer else ""
                return GenerationDelta(text=text, finish=self._finish(event))

    def _text(self, token_ids: list[int]) -> str:
        if self._detokenizer is None:
            return ""
        # Only the last token of a request can be a stop token; it is not part of the text.
        if token_ids[-1] in self._stop_token_ids:
            token_ids = token_ids[:-1]
        return contained(self._detokenizer.push, token_ids)

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
        return Finish(
            reason=finished.reason,
            stop_token_id=finished.stop_token_id,
            num_prompt_tokens=len(self._request.prompt_token_ids),
            num_completion_tokens=self._num_completion_tokens,
        )
