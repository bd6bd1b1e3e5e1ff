"""The messages of the vLLM service, which the package of its protocol has without types."""

from typing import Any, TypeAlias

Message: TypeAlias = Any
"""A message, or a field of one that holds messages."""
