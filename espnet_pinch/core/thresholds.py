"""The learnable threshold of a gate: one, or one for each of several targets that share the weights."""

import torch
from torch import Tensor, nn


def new_threshold(like: Tensor, value: float, targets: int = 1) -> nn.Parameter:
    """A threshold, (), or several, (targets,)."""
    return nn.Parameter(like.new_full((targets,) if targets > 1 else (), value))


class WithThreshold:
    """A gate's threshold. Of several targets one is in use at a time, and what one prunes, the next one prunes too.

    Attributes:
        threshold: (), or (targets,) in the order of rising targets.
        in_use: place of the target in use.
    """

    threshold: nn.Parameter
    in_use: int = 0

    @property
    def current(self) -> Tensor:
        """The threshold of the target in use, a scalar."""
        return self.threshold[self.in_use] if self.threshold.dim() else self.threshold

    @property
    def next(self) -> Tensor | None:
        """The size of the next target's threshold, a scalar; None where there is no next target."""
        last = not self.threshold.dim() or self.in_use == len(self.threshold) - 1
        return None if last else self.threshold[self.in_use + 1].detach().abs()

    def trained(self) -> Tensor:
        """The size of the threshold of each target, (targets,)."""
        return self.threshold.detach().abs().view(-1)

    def restart(self, threshold: Tensor, below: int | None, above: int | None) -> None:
        """Take this threshold, a scalar, for a single target.

        Args:
            below, above: the places of the targets until now that are nearest to it; None where there is none.
        """
        self.threshold, self.in_use = nn.Parameter(threshold.detach().view(())), 0

    def times(self, factor: float) -> Tensor:
        """The current threshold times ``factor``, but no more than the next target's."""
        scaled, most = self.current * factor, self.next
        return scaled if most is None else torch.minimum(scaled.abs(), most)
