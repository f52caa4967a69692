"""What searches have in common: they end within a run, and one common charge leads their choice to the target."""

from collections.abc import Callable

import torch
from torch import Tensor

from espnet_pinch.core.method import PruningMethod
from espnet_pinch.errors import UserError

_FARTHEST = 1e9  # a charge beyond it changes nothing


def smallest_charge(met: Callable[[float], bool]) -> tuple[float, float]:
    """The smallest charge that meets a target, by bisection, and the greatest that does not.

    The charge is common to all layers: what it makes dearer, or cheaper, they choose less, or more.

    Args:
        met: whether the choice under a charge meets the target; it must not be lost as the charge grows.

    Returns:
        The two charges, so near to each other that floats hardly tell them apart. Where no charge meets the target, or
        all do, they are far from 0.
    """
    below, above = -1.0, 1.0
    while not met(above) and above < _FARTHEST:
        above *= 10
    while met(below) and below > -_FARTHEST:
        below *= 10
    for _ in range(100):
        middle = (below + above) / 2
        below, above = (below, middle) if met(middle) else (middle, above)
    return above, below


class Search(PruningMethod):
    """A method that chooses while it trains, and at some point has chosen.

    Its noise depends on torch's seed at construction and on the step alone. So all processes of a distributed run, all
    micro-batches of a step and a resumed run draw the same.
    """

    needs_total_steps = True

    def __init__(self, **settings):
        super().__init__(**settings)
        self.chosen = False  # whether the search is over
        self.seed = torch.initial_seed()

    def no_penalty(self) -> Tensor | float:
        """0, but a function of all new parameters, as DistributedDataParallel requires."""
        return 0.0 * sum(parameter.sum() for parameter in self.new_parameters())

    # -- resume

    def get_extra_state(self) -> Tensor:
        return torch.tensor([float(self.step), float(self.chosen)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises UserError if the state is a mean of checkpoints from before and after the end of the search."""
        super().set_extra_state(state)
        if state[1] not in (0, 1):
            raise UserError(
                "the checkpoint is a mean of epochs before and after the end of the search, which is no model: choose "
                "by valid.wer_on_target, or set keep_nbest_models: 1"
            )
        self.chosen = bool(state[1])
