"""The fields of a config.json, checked one by one. Needs no torch."""

from collections.abc import Mapping

from engine_service.errors import StartupError
from engine_service.models.json_file import shown


class ConfigFields:
    """Reads a config.json field by field; each error names the field, its value and the need.

    Args:
        values: The JSON object. A field that is null counts as missing.
        source: Name of the file, for messages.
    """

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self._values = values
        self._source = source

    def get(self, name: str, default: object = None) -> object:
        """Returns a field unchanged, or the default if it is missing."""
        value = self._values.get(name)
        return default if value is None else value

    def refuse(self, name: str, value: object, needed: str) -> StartupError:
        """Returns the error to raise for a field; the value None means that it is missing."""
        found = "is missing" if value is None else f"is {shown(value)}"
        return StartupError(f"{self._source}: {name} {found}; {needed}")

    def positive_int(self, name: str, bound: int, default: int | None = None) -> int:
        """Reads an integer from 1 to a bound.

        Raises:
            StartupError: It is something else.
        """
        value = self.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= bound:
            raise self.refuse(name, value, f"must be an integer from 1 to {bound}")
        return value

    def positive_float(self, name: str, default: float | None = None) -> float:
        """Reads a finite number above 0.

        Raises:
            StartupError: It is something else.
        """
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
            raise self.refuse(name, value, "must be a positive number")
        return float(value)

    def boolean(self, name: str, *, default: bool = False) -> bool:
        """Reads true or false.

        Raises:
            StartupError: It is something else.
        """
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, value, "must be true or false")
        return value

    def must_be(self, name: str, supported: object) -> None:
        """Refuses a field that is present and does not have the one supported value.

        Raises:
            StartupError: It has another value.
        """
        value = self.get(name, supported)
        if value != supported:
            raise self.refuse(name, value, f"supported: {shown(supported)} only")

    def changed(self, changes: Mapping[str, object]) -> "ConfigFields":
        """Returns these fields with others in place of some, or added."""
        return ConfigFields({**self._values, **changes}, self._source)

    def nested(self, name: str, values: Mapping[str, object]) -> "ConfigFields":
        """Returns the fields of a nested object; error messages name both fields."""
        return ConfigFields(values, f"{self._source}: {name}")
