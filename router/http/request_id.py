"""The ID of a request: in its answer, in logs, and on its engine."""

import os
import re

from starlette.types import Scope

from protos.wire.limits import MAX_LABEL_CHARACTERS
from router.http.outlet import outlet_of

_WELL_FORMED = re.compile(rf"[!-~]{{1,{MAX_LABEL_CHARACTERS}}}")
_GIVEN = b"x-request-id"


def name_request(scope: Scope) -> None:
    """Names a request as its header `x-request-id` does, or else anew.

    A name that is no visible ASCII or too long counts as none.
    """
    given = next((value for name, value in scope["headers"] if name == _GIVEN), b"")
    found = given.decode("latin-1")
    _set(scope, found if _WELL_FORMED.fullmatch(found) else os.urandom(16).hex())


def request_id(scope: Scope) -> str:
    """Returns the ID of a request that has been named."""
    return outlet_of(scope).request_id


def chosen_id(scope: Scope, given: str | None) -> str:
    """Returns the ID of a request whose body may have another one, which then is its ID.

    If that cannot stand in a header, the header of the answer stays as it is.
    """
    if not given:
        return request_id(scope)
    if _WELL_FORMED.fullmatch(given):
        _set(scope, given)
    return given


def _set(scope: Scope, name: str) -> None:
    outlet, value = outlet_of(scope), name.encode()
    outlet.request_id = name
    # The names that OpenAI's and Anthropic's clients look for.
    outlet.set_headers([(_GIVEN, value), (b"request-id", value)])
