"""What the engine must know about a model of any architecture. Needs no torch."""

from dataclasses import dataclass

from engine_service.errors import StartupError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The values that determine sizes and limits. Architectures add what their layers need."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_sequence_len: int
    """The longest sequence in tokens that the model, as it is computed here, is made for."""
    max_sequence_len_field: str
    """The field of config.json that says so."""
    initializer_range: float
    """Standard deviation of random weights."""
    windows: tuple[int, ...]
    """Of each layer the last tokens that a token sees, itself included; 0 means all."""
    dtype: str
    """Name of the dtype in which the checkpoint claims to be stored."""

    def windows_within(self, max_model_len: int) -> tuple[int, ...]:
        """Returns the windows, but 0 for those that no sequence of the engine outgrows.

        Kernels that know no window cost less, and the prefixes of such layers can be shared.
        """
        return tuple(window if window < max_model_len else 0 for window in self.windows)

    def num_kv_heads_of(self, num_ranks: int) -> int:
        """Returns the key-value heads of each rank; with more ranks than heads, some share one."""
        return max(1, self.num_kv_heads // num_ranks)

    def check_ranks(self, num_ranks: int) -> None:
        """Refuses a number of ranks over which the model cannot be divided.

        Architectures add the sizes that their layers divide.

        Raises:
            StartupError: Names the size that does not divide.
        """
        if self.num_kv_heads % num_ranks and num_ranks % self.num_kv_heads:
            raise _cannot_divide(
                num_ranks,
                f"num_key_value_heads is {self.num_kv_heads}, no multiple and no divisor of it",
            )
        # Each rank must have a part of the vocabulary, in groups of a few tokens.
        least = 4 * num_ranks**2
        if num_ranks > 1 and self.vocab_size < least:
            raise _cannot_divide(num_ranks, f"vocab_size is {self.vocab_size}, under {least}")

    def check_divides(self, num_ranks: int, name: str, size: int) -> None:
        """Refuses a size of config.json that is not a multiple of the number of ranks.

        Raises:
            StartupError: Names it.
        """
        if size % num_ranks:
            raise _cannot_divide(num_ranks, f"{name} is {size}, not a multiple of it")


def _cannot_divide(num_ranks: int, why: str) -> StartupError:
    return StartupError(
        f"tensor_parallel_size is {num_ranks}, over which the model cannot be divided: {why}"
    )
