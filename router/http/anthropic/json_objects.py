"""Objects of any form in a request."""

import json

from protos.wire.limits import MAX_CHAT_JSON_BYTES
from router.http.anthropic.errors import bad
from router.http.sampling import JsonObject
from router.request.json_object import read_object


class JsonObjects:
    """Reads the objects of one request that have any form, within bounds.

    Attributes:
        num_bytes: Size of all that was read, as JSON.
    """

    def __init__(self) -> None:
        self.num_bytes = 0

    def read(self, name: str, value: JsonObject) -> dict[str, object]:
        """Returns the object of a field.

        Raises:
            InvalidRequest: It is too deep, has numbers that are none, or all are too long.
        """
        text = json.dumps(value, ensure_ascii=False)
        self.num_bytes += len(text.encode())
        if self.num_bytes > MAX_CHAT_JSON_BYTES:
            bounds = f"outside 0 to {MAX_CHAT_JSON_BYTES}"
            have = f"and the objects before it have {self.num_bytes} bytes of JSON"
            raise bad(name, f"{self.num_bytes} bytes", f"{have}, {bounds}")
        return read_object(name, text)
