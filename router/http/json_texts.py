"""Objects of any form in a request, which came as JSON or as text that is JSON."""

import json

from protos.wire.limits import MAX_CHAT_JSON_BYTES, MAX_TEMPLATE_KWARGS_BYTES
from protos.wire.reason import Reason
from router.errors import InvalidRequest
from router.http.sampling import JsonObject
from router.request.json_object import read_object


class JsonTexts:
    """Reads the objects of one request within bounds.

    Attributes:
        num_bytes: Size of all that was read, as JSON.
    """

    def __init__(self) -> None:
        self.num_bytes = 0

    def read(self, field: str, text: str) -> JsonObject:
        """Returns the object that a text stands for.

        Raises:
            InvalidRequest: It is none, is too deep, has numbers that are none, or all texts
                together are too long.
        """
        self.num_bytes += len(text.encode())
        name = f"{field} and what came before it"
        _check_size(field, name, self.num_bytes, MAX_CHAT_JSON_BYTES)
        return read_object(field, text)

    def check(self, field: str, value: JsonObject) -> JsonObject:
        """Returns an object that came as JSON in the body, by the same rules.

        Raises:
            InvalidRequest: As `read`.
        """
        return self.read(field, json.dumps(value, ensure_ascii=False))

    def variables(self, variables: JsonObject) -> JsonObject:
        """Returns more variables for the chat template, as they came in the body.

        Raises:
            InvalidRequest: As `read`, or they alone are too long.
        """
        if not variables:
            return {}
        field, before = "chat_template_kwargs", self.num_bytes
        read = self.check(field, variables)
        _check_size(field, field, self.num_bytes - before, MAX_TEMPLATE_KWARGS_BYTES)
        return read


def _check_size(field: str, name: str, num_bytes: int, most: int) -> None:
    if num_bytes > most:
        raise InvalidRequest(
            f"{name} have {num_bytes} bytes of JSON, outside 0 to {most}",
            {"field": field, "value": f"{num_bytes} bytes", "bounds": f"0 to {most}"},
            reason=Reason.BAD_CHAT,
        )
