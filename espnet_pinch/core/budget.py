"""The sparsity of the gated layers, and one common factor on all thresholds that brings it to a target."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from espnet_pinch.core.attach import find_linears, replace_module
from espnet_pinch.core.gate import GatedLinear
from espnet_pinch.errors import UserError

# How far above the target the sparsity may end: half of the 0.1 point that is allowed for the result.
TOLERANCE = 0.0005


def count_weights(gates: Sequence[GatedLinear]) -> int:
    """Number of gated weights, kept or pruned."""
    return sum(gate.weight_orig.numel() for gate in gates)


def count_pruned(gates: Sequence[GatedLinear], factor: float = 1.0) -> int:
    """Number of weights that the gates prune if every threshold is multiplied by ``factor``."""
    return count_weights(gates) - int(torch.stack([gate.count_kept(factor) for gate in gates]).sum())


def sparsity(gates: Sequence[GatedLinear]) -> float:
    """Overall sparsity: the fraction of the gated weights that is pruned."""
    return count_pruned(gates) / count_weights(gates)


@torch.no_grad()
def land(gates: Sequence[GatedLinear], target: float, tolerance: float) -> None:
    """Multiply every threshold by one common factor, so that the sparsity is in [target, target + tolerance].

    One common factor keeps the ratios of the layers' thresholds, which training has found. If the weights are too few
    for the tolerance, or many are equal, the result is the smallest possible sparsity that is not below the target.

    Args:
        gates: the gated layers.
        target: sparsity, 0 <= target < 1.
        tolerance: how far above the target the sparsity may be, > 0.

    Raises:
        UserError: no factor reaches the target, because thresholds are 0 or not finite.
    """
    total = count_weights(gates)

    def reached(factor):
        return count_pruned(gates, factor) >= target * total

    low, high, step = 1.0, 1.0, 1.05
    while not reached(high):
        low, high, step = high, high * step, step * step
        if high > 1e30:
            raise UserError(f"no scale of the thresholds reaches a sparsity of {target}: are they 0 or not finite?")
    step = 1.05
    while low == high or reached(low):
        low, high, step = low / step, low, step * step
        if low < 1e-30:
            break
    while count_pruned(gates, high) > (target + tolerance) * total:
        middle = (low + high) / 2
        if middle in (low, high) or high - low < 1e-7 * high:
            break
        if reached(middle):
            high = middle
        else:
            low = middle
    for gate in gates:
        gate.current.copy_(gate.times(high))


class WeightGates:
    """The gates of a model whose units are single weights: one for each linear layer.

    Args:
        model: gets the gates.
        layers: pattern of the layers' names.
        threshold: initial value of every threshold.
        targets: number of thresholds of each gate.
    """

    freezes = False  # single weights come and go to the end of a run

    def __init__(self, model: nn.Module, layers: str, threshold: float, targets: int = 1):
        self.gates: dict[str, GatedLinear] = {}
        for name, linear in find_linears(model, layers).items():
            self.gates[name] = GatedLinear(linear, threshold, targets=targets)
            replace_module(model, name, self.gates[name])

    def kept(self) -> Tensor:
        """Number of kept weights, a scalar, differentiable."""
        return torch.stack([gate.kept() for gate in self.gates.values()]).sum()

    def sparsity(self) -> float:
        """The fraction of the gated weights that is pruned."""
        return sparsity(list(self.gates.values()))

    reached = sparsity

    def land(self, target: float) -> None:
        """As ``land``, to within half the tolerance."""
        land(list(self.gates.values()), target, TOLERANCE / 2)

    def freeze(self) -> None:
        """Nothing, see ``freezes``."""

    def frozen(self) -> bool:
        return False

    def overshoots(self, target: float) -> bool:
        """Whether more is pruned than the target and the tolerance allow."""
        return self.sparsity() > target + TOLERANCE

    def layer_counts(self) -> dict[str, tuple[float, int]]:
        """``{layer: (pruned weights, weights)}``."""
        return {name: (count_pruned([gate]), count_weights([gate])) for name, gate in self.gates.items()}

    def fold(self, model: nn.Module) -> dict[str, int]:
        """Put plain layers with zeros in the place of the gates. Returns no widths: the layers keep theirs."""
        for name, gate in self.gates.items():
            replace_module(model, name, gate.fold())
        return {}
