"""The gates of whole heads, channels and filters: one learnable threshold for each group of them.

The score of a unit is the mean square of all of its weights, over the mean of its group before the training, so that
the groups of a network share a scale. Units are pruned as the paper prunes weights (arXiv 2505.22608, section 2), with
the score in place of ``W^2``. No paper has done this.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_pinch.core.attach import find_linears, replace_module
from espnet_pinch.core.gate import kept_units, masked_weight
from espnet_pinch.core.score import Slices
from espnet_pinch.core.units import Cost, Group, Part, Structure, cut, find_groups, mac_cost, weight_cost
from espnet_pinch.errors import UserError


class UnitGate(nn.Module):
    """The gate of a group: one threshold for all of its units.

    Args:
        group: the units.
        weights: one for each of its parts.
        threshold: initial value of the threshold.
        tau: temperature of the soft mask, > 0.
    """

    scale: Tensor

    def __init__(self, group: Group, weights: Sequence[Tensor], threshold: float = 1e-5, tau: float = 0.5):
        super().__init__()
        self.group, self.tau = group, tau
        self.threshold = nn.Parameter(weights[0].new_tensor(threshold))  # ()
        self.weights = list(weights)  # not parameters of the gate: the layers hold them
        self.slices = [Slices(part.axis, group.size, group.least, group.multiple) for part in group.parts]
        self.weights_per_unit = sum(weight.numel() for weight in weights) // group.units
        self._cached: tuple[tuple, Tensor] | None = None
        self._spent = False  # whether a backward pass has gone through the cached scores
        self.register_buffer("scale", torch.ones_like(self.threshold))
        with torch.no_grad():
            self.scale.copy_(self.scores().mean())
        self._cached = None

    def scores(self) -> Tensor:
        """Mean square of each unit's weights, (units), differentiable."""
        key = (torch.is_grad_enabled(), *(weight._version for weight in self.weights))
        if self._cached is None or self._cached[0] != key or self._spent:
            squares = [slices.gather(weight.square()) for slices, weight in zip(self.slices, self.weights)]
            scores = torch.stack(squares).sum(0) / (self.weights_per_unit * self.scale)
            self._cached, self._spent = (key, scores), False
            if scores.requires_grad:
                scores.register_hook(self._backward_came)
        return self._cached[1]

    def _backward_came(self, _) -> None:
        self._spent = True

    def masked(self, weight: Tensor, axis: int) -> Tensor:
        """The weight of a part, or what other gates have left of it, with the pruned units as zeros."""
        slices = next(slices for slices in self.slices if slices.axis == axis)
        return masked_weight(weight, self.threshold, self.tau, slices, self.scores())

    def kept(self) -> Tensor:
        """Number of kept units, differentiable (``kept_units``)."""
        return kept_units(None, self.threshold, self.tau, self.slices[0], self.scores())

    @torch.no_grad()
    def hard(self) -> Tensor:
        """Which units are kept, (units), boolean."""
        return self.slices[0].kept(self.scores(), self.threshold)

    def extra_repr(self) -> str:
        return f"{self.group.name}, {self.group.units} {self.group.kind}"


class GatedLayer(nn.Module):
    """A linear layer or a convolution whose outputs, inputs or both are units of gates. It shares its parameters.

    ``weight`` is the masked weight, for code that reads it instead of calling the layer, such as WavLM's attention.

    Args:
        layer: an ``nn.Linear``, or an ``nn.Conv1d`` without groups and padding.
        gates: ``{axis: gate}``.
        own: the axis whose gate is a submodule of this layer, so that its threshold is among the model's parameters.
    """

    bias: Tensor | None

    def __init__(self, layer: nn.Linear | nn.Conv1d, gates: dict[int, UnitGate], own: int | None = None):
        super().__init__()
        self.weight_orig = layer.weight
        self.bias = layer.bias
        self.layer = [layer]  # in a list: the parameters are this module's own
        self.gates = [gates]  # the same: other layers hold them as well
        self.gate = gates[own] if own is not None else None

    @property
    def weight(self) -> Tensor:
        weight = self.weight_orig
        for axis, gate in self.gates[0].items():
            weight = gate.masked(weight, axis)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer[0], nn.Conv1d):
            return F.conv1d(x, self.weight, self.bias, self.layer[0].stride, dilation=self.layer[0].dilation)
        return F.linear(x, self.weight, self.bias)

    def plain(self) -> nn.Linear | nn.Conv1d:
        """The layer that was gated, as it was."""
        return self.layer[0].train(self.training)


class GatedLayerNorm(nn.Module):
    """A layer norm over the channels that a gate keeps; the others are 0 before scale and shift.

    The mask is taken as it is: gradients reach the threshold through the layers on both sides.

    Args:
        norm: the ``nn.LayerNorm`` over the channels of a group whose units are single channels.
        gate: of the group.
    """

    def __init__(self, norm: nn.LayerNorm, gate: UnitGate):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.norm, self.gates = [norm], [gate]  # in lists, as in GatedLayer

    def forward(self, x: Tensor) -> Tensor:  # (..., channels)
        kept = self.gates[0].hard().to(x.dtype)
        count = kept.sum()
        centred = (x - (x * kept).sum(-1, keepdim=True) / count) * kept
        variance = centred.square().sum(-1, keepdim=True) / count
        return centred * torch.rsqrt(variance + self.norm[0].eps) * self.weight + self.bias

    def plain(self) -> nn.LayerNorm:
        """The norm that was gated, as it was."""
        return self.norm[0].train(self.training)


def gate_groups(model: nn.Module, groups: Sequence[Group], threshold: float = 1e-5) -> list[UnitGate]:
    """Put a gate for each group into ``model``.

    Returns: the gates, in the order of ``groups``.
    """
    layers: dict[str, Any] = {part.layer: model.get_submodule(part.layer) for group in groups for part in group.parts}
    gates = [UnitGate(g, [layers[part.layer].weight for part in g.parts], threshold) for g in groups]
    for name, layer in layers.items():
        of_layer = {p.axis: gate for gate in gates for p in gate.group.parts if p.layer == name}
        own = next((axis for axis, gate in of_layer.items() if gate.group.parts[0] == Part(name, axis)), None)
        replace_module(model, name, GatedLayer(layer, dict(sorted(of_layer.items())), own))
    for gate in gates:
        for name in gate.group.norms:
            norm: Any = model.get_submodule(name)
            replace_module(model, name, GatedLayerNorm(norm, gate))
    return gates


@torch.no_grad()
def take_gates(model: nn.Module, gates: Sequence[UnitGate], structure: Structure) -> dict[str, int]:
    """Put plain, smaller layers in the place of the gated ones.

    Returns: ``{group: units that stay}``, of the groups that have lost some.
    """
    kept = {gate.group.name: gate.hard().nonzero().flatten() for gate in gates}
    for gate in gates:
        for part in gate.group.parts:
            layer = model.get_submodule(part.layer)
            if isinstance(layer, GatedLayer):
                replace_module(model, part.layer, layer.plain())
        for name in gate.group.norms:
            norm = model.get_submodule(name)
            if isinstance(norm, GatedLayerNorm):
                replace_module(model, name, norm.plain())
    shrunk = [gate.group for gate in gates if len(kept[gate.group.name]) < gate.group.units]
    for group in shrunk:
        (structure.cut or cut)(model, group, kept[group.name])
    return {group.name: len(kept[group.name]) for group in shrunk}


def counts(gates: Iterable[UnitGate]) -> list[int]:
    """Number of units that each gate keeps."""
    return torch.stack([gate.hard().sum() for gate in gates]).tolist()


@torch.no_grad()
def land(gates: Sequence[UnitGate], cost: Cost, budget: float) -> None:
    """Multiply every threshold by one common factor, so that the cost is within ``budget``, by less than a block.

    A block is as many units of a group as its ``multiple`` says. One factor for all keeps what training found: the
    ratios of the groups' thresholds.

    Args:
        gates: of the groups of ``cost``, in their order.
        budget: in the unit of the cost.

    Raises:
        UserError: no factor reaches the budget: every group keeps some units, or a threshold is 0 or not finite.
    """
    events = []  # (the square of the factor over which a group loses its next block, place of the group, units left)
    for i, gate in enumerate(gates):
        ratios = (gate.scores().double() / gate.threshold.double().square()).sort(descending=True).values.tolist()
        events += [(ratios[left], i, left) for left in gate.group.smaller_widths]
    events.sort()

    def kept(number: int) -> list[int]:
        left = list(cost.widths)
        for _, i, n in events[:number]:
            left[i] = n
        return left

    low, high = 0, len(events)
    if not cost.of(kept(high)) <= budget or not all(math.isfinite(ratio) for ratio, _, _ in events):
        least = cost.of(kept(high)) / cost.full
        raise UserError(
            f"the thresholds cannot reach a cost of {100 * budget / cost.full:.2f} % of the unpruned model's: its "
            f"units may go down to {100 * least:.2f} %, and the thresholds must be finite and not 0"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost.of(kept(middle)) <= budget else (middle + 1, high)
    below = events[high - 1][0] if high else events[0][0] / 4
    above = events[high][0] if high < len(events) else below * 4
    factor = (below * above) ** 0.25  # between the two, on a scale of ratios
    for _ in range(100):
        for gate in gates:
            gate.threshold.mul_(factor)
        if cost.of(counts(gates)) <= budget:
            return
        factor = 1 + 1e-6  # two events closer than the numbers can tell


class UnitGates:
    """The gates of a model whose units are heads, channels and filters: one for each group.

    Args:
        model: gets the gates.
        layers: pattern of the names of the linear layers whose heads and channels they are.
        threshold: initial value of every threshold.
        structure: of the model.
        conv: whether the filters of the convolutions are units as well. Unfreezes them.
        multiple: the numbers of channels and filters that are kept are multiples of it.
        macs: whether the budget is the model's multiplications; otherwise it is the gated weights.
        target: the fraction of the budget that is to be saved.

    Raises:
        UserError: the model has no units of that kind, it is not known how to count its multiplications, or it cannot
            save so much.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: str,
        threshold: float,
        structure: Structure,
        conv: bool,
        multiple: int,
        macs: bool,
        target: float,
    ):
        groups = find_groups(model, find_linears(model, layers), structure.ties, multiple)
        if conv:
            if structure.filters is None:
                raise UserError(
                    "conv: true, but it is not known which convolutions of this model have filters to prune"
                )
            groups += structure.filters(multiple)
        self.structure = structure
        self.weights = weight_cost(model, groups)
        self.budget = self.weights
        if macs:
            if structure.macs is None:
                raise UserError("target_macs, but it is not known how to count the multiplications of this model")
            self.budget = mac_cost(groups, structure.macs())
        most = 1 - self.budget.of([group.fewest for group in groups]) / self.budget.full
        if target > most:
            raise UserError(
                f"the model cannot save {100 * target:.2f} % of its {'multiplications' if macs else 'gated weights'}: "
                f"every layer keeps some units, which allows at most {100 * most:.2f} %"
            )
        self.gates = {gate.group.name: gate for gate in gate_groups(model, groups, threshold)}
        if conv:
            for group in groups:
                if group.kind == "filters":
                    for name in (*(part.layer for part in group.parts), *group.norms, *group.channel_norms):
                        model.get_submodule(name).requires_grad_(True)
        blocks = []
        for i, group in enumerate(groups):
            less = [g.units for g in groups]
            less[i] -= group.multiple
            blocks.append(1 - self.budget.of(less) / self.budget.full)
        self.tolerance = max(blocks)

    def kept(self) -> Tensor:
        """The part of the budget that is kept, a scalar, differentiable; as a number of weights, on eta's scale."""
        kept = self.budget.of([gate.kept() for gate in self.gates.values()])
        return kept * (self.weights.full / self.budget.full)

    def sparsity(self) -> float:
        """The fraction of the gated weights that is pruned."""
        return 1 - self.weights.of(counts(self.gates.values())) / self.weights.full

    def reached(self) -> float:
        """The fraction of the budget that is pruned."""
        return 1 - self.budget.of(counts(self.gates.values())) / self.budget.full

    def land(self, target: float) -> None:
        """As ``land``, on a fraction of the budget."""
        land(list(self.gates.values()), self.budget, (1 - target) * self.budget.full)

    def layer_counts(self) -> dict[str, tuple[int, int]]:
        """``{layer: (pruned weights, weights)}``."""
        left = dict(zip(self.gates, counts(self.gates.values())))
        found: dict[str, tuple[int, float]] = {}
        for name, gate in self.gates.items():
            for part, weight in zip(gate.group.parts, gate.weights):
                _, kept = found.get(part.layer, (0, weight.numel()))
                found[part.layer] = weight.numel(), kept * left[name] / gate.group.units
        return {layer: (total - round(kept), total) for layer, (total, kept) in found.items()}

    def collapsed(self) -> dict[str, str]:
        """The groups that would keep fewer units than they must."""
        found = {}
        for name, gate in self.gates.items():
            over = int((gate.scores() >= gate.threshold.square()).sum())
            left = int(gate.hard().sum())
            if over < gate.group.fewest == left:
                kind = gate.group.kind
                found[name] = f"its threshold leaves {over} of {gate.group.units} {kind}; {left} are held, the fewest"
        return found

    def fold(self, model: nn.Module) -> dict[str, int]:
        """Put plain, smaller layers in the place of the gates, as ``take_gates``."""
        return take_gates(model, list(self.gates.values()), self.structure)
