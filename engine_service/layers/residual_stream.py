"""The residual stream of a step's tokens, to which layers add and from which they read."""

from typing import NamedTuple

import torch

from engine_service.layers.linear import Linear
from engine_service.layers.norm import RMSNorm
from engine_service.layers.ranks import Ranks
from kernels.copied_all_reduce import PartialSum
from kernels.partial_attention import PartialAttention


class _PendingProjection(NamedTuple):
    """A projection that the next norm computes."""

    linear: Linear
    x: torch.Tensor | PartialAttention
    """[num_rows, in_features], or the attention of the only row."""


class Lane:
    """Some rows of the stream.

    What is added last stays beside the sum of the rest until a norm reads both. A projection is
    computed only then, too, by kernels that also add it and prepare the norm. Of several ranks,
    each adds a part, and the ranks may exchange their parts until then, while other work runs.

    Attributes:
        rows: Which of the step's tokens they are.
        residual: [num_rows, hidden_size], the sum that the last norm has read; None before it.
    """

    def __init__(self, rows: slice, index: int, hidden: torch.Tensor, ranks: Ranks) -> None:
        """Begins with [num_rows, hidden_size] that all ranks have."""
        self.rows = rows
        self.residual: torch.Tensor | None = None
        self._index = index
        self._ranks = ranks
        self._added: torch.Tensor | _PendingProjection | PartialSum | None = hidden
        self._num_sums = 0

    def add(self, linear: Linear, x: torch.Tensor | PartialAttention) -> None:
        """Adds a projection of [num_rows, in_features], of which each rank computes a part.

        A norm comes before the next call, and x must not change until then. The attention of one
        token may be left in parts, if there is one rank and a norm and a projection come next.
        """
        if self._ranks.size == 1:
            self._added = _PendingProjection(linear, x)
        else:
            assert isinstance(x, torch.Tensor), "ranks add up whole rows"
            self._added = self._ranks.begin_sum(linear(x), self._index, self._num_sums)
            self._num_sums += 1

    def norm(self, norm: RMSNorm) -> torch.Tensor:
        """Returns the normalised rows. Something has been added since the last norm."""
        assert self.residual is not None, "the first norm is one of a layer"
        added = self._take_added()
        if isinstance(added, PartialSum):
            normed, self.residual = self._ranks.end_sum(added, norm, self.residual)
        else:
            if isinstance(added, _PendingProjection):
                assert isinstance(added.x, torch.Tensor), "a projection follows behind parts"
                added = added.linear(added.x)
            normed, self.residual = norm(added, self.residual)
        return normed

    def norm_linear(
        self, norm: RMSNorm, linear: Linear, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns the projection of the normalised rows, which is `out` if that is given."""
        if isinstance(self._added, PartialSum):
            return linear(self.norm(norm), out)
        projected = self._project(norm, linear, is_gated=False)
        return projected if out is None else out.copy_(projected)

    def norm_gated_linear(self, norm: RMSNorm, linear: Linear) -> torch.Tensor:
        """Returns the gated projection of the normalised rows, [num_rows, out_features / 2]."""
        if isinstance(self._added, PartialSum):
            return linear.gated_linear(self.norm(norm))
        return self._project(norm, linear, is_gated=True)

    def _take_added(self) -> torch.Tensor | _PendingProjection | PartialSum:
        added, self._added = self._added, None
        assert added is not None, "something is added before each norm"
        return added

    def _project(self, norm: RMSNorm, linear: Linear, *, is_gated: bool) -> torch.Tensor:
        added = self._take_added()
        assert not isinstance(added, PartialSum), "the norm ends it"
        if isinstance(added, _PendingProjection):
            assert self.residual is not None, "a stream begins with rows"
            projected, self.residual = added.linear.linear_norm_linear(
                added.x, self.residual, norm, linear, is_gated=is_gated
            )
        else:
            projected, self.residual = linear.norm_linear(
                norm, added, self.residual, is_gated=is_gated
            )
        return projected

    def keep(self, rows: slice, residual: torch.Tensor) -> None:
        """Goes on with other rows, to which nothing has been added since the last norm."""
        self.rows, self.residual = rows, residual


class ResidualStream:
    """The rows of all tokens, in lanes that follow each other.

    Attributes:
        lanes: A single one unless the ranks can add up one beside the work on another.
    """

    def __init__(self, hidden: torch.Tensor, ranks: Ranks) -> None:
        """Begins with [num_tokens, hidden_size] that all ranks have."""
        self._hidden = hidden
        self.lanes: list[Lane] = []
        begin = 0
        for size in ranks.lane_sizes(len(hidden)):
            rows = slice(begin, begin + size)
            self.lanes.append(Lane(rows, len(self.lanes), hidden[rows], ranks))
            begin += size

    def add(self, linear: Linear, x: torch.Tensor | PartialAttention) -> None:
        """Adds a projection of [num_tokens, in_features], of which each rank computes a part.

        Or of the attention of the only token, as `Lane.add`.
        """
        for lane in self.lanes:
            lane.add(linear, x if isinstance(x, PartialAttention) else x[lane.rows])

    def norm(self, norm: RMSNorm) -> torch.Tensor:
        """Returns the normalised rows. Something has been added since the last norm."""
        return _joined([lane.norm(norm) for lane in self.lanes])

    def norm_linear(self, norm: RMSNorm, linear: Linear) -> torch.Tensor:
        """Returns the projection of the normalised rows, [num_tokens, out_features]."""
        first, *others = self.lanes
        if not others:
            return first.norm_linear(norm, linear)
        out = self._hidden.new_empty(len(self._hidden), linear.out_features)
        for lane in self.lanes:
            lane.norm_linear(norm, linear, out[lane.rows])
        return out

    def keep(self, indices: torch.Tensor) -> None:
        """Goes on with some tokens only. Nothing has been added since the last norm."""
        residuals = [lane.residual for lane in self.lanes if lane.residual is not None]
        first, *_ = self.lanes
        first.keep(slice(0, len(indices)), _joined(residuals)[indices])
        self.lanes = [first]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
