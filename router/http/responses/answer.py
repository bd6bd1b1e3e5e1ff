"""The answer of the Responses API: one object that holds the items and repeats the settings."""

import time
from typing import Any

from protos.wire.reason import Reason
from router.http.errors import Refusal, openai_error
from router.http.responses.output import Change, Output
from router.http.responses.request import ResponsesRequest
from router.types.engine_events import FinishReason
from router.types.generation import Admission, Finish, GenerationDelta

_NAMES = {
    "messages": "input",
    "tool_choice.function_name": "tool_choice.name",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "grammar": "text.format",
}
"""What fields of the router's own requests are called in this API."""


class Answer:
    """One answer while it is generated."""

    def __init__(self, request: ResponsesRequest) -> None:
        """Nothing has been generated yet."""
        self._settings = request.settings()
        self._has_logprobs = request.num_logprobs is not None
        self._created_at = int(time.time())
        self._admission: Admission | None = None
        self._finish: Finish | None = None
        self._output: Output | None = None

    def push(self, delta: GenerationDelta) -> list[Change]:
        """Returns what a delta changes; the first one must be that with the admission."""
        if delta.admission is not None and self._admission is None:
            self._admission = delta.admission
            self._output = Output(delta.admission.request_id, has_logprobs=self._has_logprobs)
        if delta.finish is not None:
            self._finish = delta.finish
        return self._begun[1].push(delta)

    @property
    def has_begun(self) -> bool:
        """Whether there was a delta."""
        return self._admission is not None

    def end(self) -> list[Change]:
        """Returns what the end of the generation changes."""
        return self._begun[1].end(self._status)

    def begun(self) -> dict[str, Any]:
        """Returns the object before anything is in it."""
        return self._response("in_progress", [])

    def ended(self) -> dict[str, Any]:
        """Returns the whole object, after `end`."""
        admission, output = self._begun
        entries = [item.entry() for item in output.items]
        return self._response(self._status, entries) | {"usage": self._usage(admission, output)}

    def failed(self, refusal: Refusal) -> dict[str, Any]:
        """Returns the object with an error and what has come before it."""
        output = self._begun[1]
        if output.items:
            output.end("incomplete")
        entries = [item.entry() for item in output.items]
        return self._response("failed", entries) | {"error": _error(refusal)}

    @property
    def _begun(self) -> tuple[Admission, Output]:
        assert self._admission is not None, "the first delta has the admission"
        assert self._output is not None, "it comes with the admission"
        return self._admission, self._output

    @property
    def _status(self) -> str:
        assert self._finish is not None, "the last delta has the finish"
        return "incomplete" if self._finish.reason is FinishReason.LENGTH else "completed"

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        is_cut = status == "incomplete"
        return {
            "id": f"resp_{self._begun[0].request_id}",
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "model": self._begun[0].model,
            "output": output,
            "usage": None,
            **self._settings,
        }

    def _usage(self, admission: Admission, output: Output) -> dict[str, Any]:
        assert self._finish is not None, "the last delta has the finish"
        num_prompt, num_new = self._finish.num_prompt_tokens, self._finish.num_completion_tokens
        return {
            "input_tokens": num_prompt,
            "input_tokens_details": {
                "cached_tokens": admission.num_cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": num_new,
            "output_tokens_details": {"reasoning_tokens": output.num_reasoning_tokens},
            "total_tokens": num_prompt + num_new,
        }


def responses_error(refusal: Refusal) -> dict[str, Any]:
    """Returns the error object of OpenAI's API, with fields as they are called in requests."""
    answer = openai_error(refusal)
    error = answer["error"]
    name = _NAMES.get(refusal.field)
    if name is not None:
        error["message"] = refusal.message.replace(refusal.field, name, 1)
        error["param"] = name
    elif refusal.reason == Reason.PROMPT_TOO_LONG:
        error["message"] = refusal.message.replace(" max_tokens ", " max_output_tokens ", 1)
    return answer


def _error(refusal: Refusal) -> dict[str, Any]:
    """Returns the error of an answer, whose codes are few."""
    if refusal.http_status == 429:
        code = "rate_limit_exceeded"
    else:
        code = "invalid_prompt" if refusal.http_status < 500 else "server_error"
    return {"code": code, "message": refusal.message}
