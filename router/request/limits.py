"""Checks the limits of one request before any work is done for it.

The engine checks again, for clients that call it directly. `parameters` has the limits of sampling.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from protos.wire.limits import MAX_LABEL_CHARACTERS
from protos.wire.printable import first_unprintable, shown
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.request.chat_limits import check_chat, check_grammar, text_bytes
from router.types.engine_state import ModelInfo
from router.types.generation import GenerationRequest
from router.types.prompts import ChatPrompt, Prompt, TextPrompt, TokenPrompt

_MAX_FEW = 1024
"""Up to this many token IDs, `max` is faster than numpy."""


def check_request(request: GenerationRequest, model: ModelInfo, max_prompt_bytes: int) -> None:
    """Refuses everything that can be found wrong before tokenization.

    Raises:
        InvalidRequest: The reason says which part is wrong; message and metadata give field, value
            and bound.
        PermissionDenied: The priority is above that of the client's API key.
    """
    if request.caller is not None:
        request.caller.check_priority(request.priority)
    for field, label in (("request_id", request.request_id), ("cache_salt", request.cache_salt)):
        if len(label) > MAX_LABEL_CHARACTERS:
            bounds = f"0 to {MAX_LABEL_CHARACTERS}"
            raise InvalidRequest(
                f"{field} has {len(label)} characters, outside {bounds}",
                {"field": field, "value": str(len(label)), "bounds": bounds},
            )
    if not request.request_id.isprintable():
        raise InvalidRequest(
            f"request_id contains {first_unprintable(request.request_id)}; it must be printable",
            {
                "field": "request_id",
                "value": shown(request.request_id),
                "bounds": "printable characters",
            },
        )
    if isinstance(request.prompt, TokenPrompt):
        num_tokens = len(request.prompt.token_ids)
        asked = fitted(request, num_tokens, model).sampling_params.max_tokens
        check_length(num_tokens, asked, model)
    check_prompt(request.prompt, model, max_prompt_bytes)
    if isinstance(request.prompt, ChatPrompt):
        check_grammar(request.prompt, request.sampling_params)


def check_prompt(prompt: Prompt, model: ModelInfo, max_prompt_bytes: int) -> None:
    """Refuses a prompt that is empty, too long or invalid.

    Raises:
        InvalidRequest: As `check_request`.
    """
    match prompt:
        case TextPrompt():
            if not prompt.text:
                raise InvalidRequest(
                    f"{prompt.field} is empty", {"field": prompt.field}, reason=Reason.EMPTY_PROMPT
                )
            _check_size(prompt.field, len(prompt.text.encode()), max_prompt_bytes)
        case ChatPrompt():
            check_chat(prompt)
            _check_size("chat.messages", text_bytes(prompt), max_prompt_bytes)
        case TokenPrompt():
            check_token_ids(prompt.field, prompt.token_ids, model)


def check_length(num_prompt_tokens: int, max_tokens: int | None, model: ModelInfo) -> None:
    """Refuses a prompt without tokens, or one that leaves no room for the requested tokens.

    Raises:
        InvalidRequest: As `check_request`.
    """
    if not num_prompt_tokens:
        raise InvalidRequest("the prompt has no tokens", reason=Reason.EMPTY_PROMPT)
    num_tokens = num_prompt_tokens + (1 if max_tokens is None else max_tokens)
    if num_tokens > model.max_model_len:
        asked = "one to generate" if max_tokens is None else f"max_tokens of {max_tokens}"
        raise InvalidRequest(
            f"prompt of {num_prompt_tokens} tokens and {asked} are {num_tokens} tokens, "
            f"over max_model_len {model.max_model_len}",
            {
                "num_prompt_tokens": str(num_prompt_tokens),
                "max_tokens": "" if max_tokens is None else str(max_tokens),
                "max_model_len": str(model.max_model_len),
            },
            reason=Reason.PROMPT_TOO_LONG,
        )


def fitted(
    request: GenerationRequest, num_prompt_tokens: int, model: ModelInfo
) -> GenerationRequest:
    """Returns the request, with `max_tokens` lowered to the room behind its prompt if it may be.

    Without any room it is unset, so that `check_length` refuses the prompt and not its value.
    """
    if not request.fits_max_tokens:
        return request
    params = request.sampling_params
    room = model.max_sequence_len - num_prompt_tokens
    if params.max_tokens is None or params.max_tokens <= room:
        return request
    params = replace(params, max_tokens=room if room > 0 else None)
    return replace(request, sampling_params=params)


def check_num_tokens(num_tokens: int, model: ModelInfo) -> None:
    """Refuses a text with more tokens than the model's length.

    Raises:
        InvalidRequest: As `check_request`.
    """
    if num_tokens > model.max_model_len:
        bounds = f"0 to {model.max_model_len}"
        raise InvalidRequest(
            f"the text has {num_tokens} tokens, outside {bounds}",
            {"field": "text", "value": str(num_tokens), "bounds": bounds},
            reason=Reason.PROMPT_TOO_LONG,
        )


def check_token_ids(field: str, token_ids: Sequence[int], model: ModelInfo) -> None:
    """Refuses token IDs outside the vocabulary.

    Raises:
        InvalidRequest: The message names the first of them.
    """
    if len(token_ids) <= _MAX_FEW and (not token_ids or max(token_ids) < model.vocab_size):
        return
    # Checking each in Python takes 20 ns, too long for a million.
    are_outside = np.asarray(token_ids) >= model.vocab_size
    if are_outside.any():
        index = int(are_outside.argmax())
        bounds = f"0 to {model.vocab_size - 1}"
        raise outside(f"{field}[{index}]", token_ids[index], bounds, Reason.TOKEN_OUT_OF_RANGE)


def _check_size(field: str, num_bytes: int, max_prompt_bytes: int) -> None:
    if num_bytes > max_prompt_bytes:
        raise InvalidRequest(
            f"{field} has {num_bytes} bytes, over max_prompt_bytes {max_prompt_bytes}",
            {"field": field, "value": str(num_bytes), "bounds": f"0 to {max_prompt_bytes}"},
            reason=Reason.PROMPT_TOO_LONG,
        )


def outside(
    field: str, value: int | str, bounds: str, reason: Reason = Reason.BAD_REQUEST
) -> InvalidRequest:
    """Returns the error for a value that exceeds its bounds."""
    return InvalidRequest(
        f"{field} is {value}, outside {bounds}",
        {"field": field, "value": str(value), "bounds": bounds},
        reason=reason,
    )
