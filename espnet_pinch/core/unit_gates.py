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
from espnet_pinch.core.parameters import Width
from espnet_pinch.core.score import Slices, Units
from espnet_pinch.core.units import Cost, Group, Part, Structure, cut, find_groups, mac_cost, weight_cost
from espnet_pinch.errors import UserError


class UnitGate(nn.Module):
    """The gate of a group, or of several alike that keep the same number of units: one threshold for all of them.

    How many units are kept is rounded up to the group's ``multiple``: the largest of those under the threshold stay.
    Of several groups, the scores are ranked in each, and the mean of each rank is compared with the threshold.

    Args:
        groups: the units.
        weights: for each group, one for each of its parts.
        threshold: initial value of the threshold.
        tau: temperature of the soft mask, > 0.
    """

    scale: Tensor

    def __init__(
        self, groups: Sequence[Group], weights: Sequence[Sequence[Tensor]], threshold: float = 1e-5, tau: float = 0.5
    ):
        super().__init__()
        self.groups, self.tau = tuple(groups), tau
        self.name = groups[0].name if len(groups) == 1 else f"{groups[0].kind} of all blocks"
        self.threshold = nn.Parameter(weights[0][0].new_tensor(threshold))  # ()
        self.weights = [list(of_group) for of_group in weights]  # not parameters of the gate: the layers hold them
        self.slices = [[Slices(part.axis, group.size) for part in group.parts] for group in groups]
        self._cached: tuple[tuple, list[Units]] | None = None
        self._spent = self._with_grad = False  # of the cached scores: a backward pass has used them; they have a graph
        self.register_buffer("scale", torch.ones_like(self.threshold))
        with torch.no_grad():
            self.scale.copy_(torch.stack([units.scores for units in self.units()]).mean())
        self._cached = None

    def units(self) -> list[Units]:
        """The units of each group; their scores are differentiable."""
        weights = [weight for of_group in self.weights for weight in of_group]
        key = tuple((t._version, t.data_ptr()) for t in (self.threshold, *weights))  # changed, moved to a device
        new_graph = torch.is_grad_enabled() and (self._spent or not self._with_grad)
        if self._cached is None or self._cached[0] != key or new_graph:
            scores = [self._scores(i) for i in range(len(self.groups))]
            ranks = [s.detach().argsort(descending=True, stable=True).argsort() for s in scores]  # 0 for the largest
            left = self._left(torch.stack([s.detach().sort(descending=True).values for s in scores]).mean(0))
            self._cached = key, [Units(s, rank < left) for s, rank in zip(scores, ranks)]
            self._spent, self._with_grad = False, torch.is_grad_enabled()
            for score in scores:
                if score.requires_grad:
                    score.register_hook(self._backward_came)
        return self._cached[1]

    def _scores(self, i: int) -> Tensor:
        """Mean square of the weights of each unit of a group, over the scale, (units)."""
        squares = [slices.gather(weight.square()) for slices, weight in zip(self.slices[i], self.weights[i])]
        per_unit = sum(weight.numel() for weight in self.weights[i]) // self.groups[i].units
        return torch.stack(squares).sum(0) / (per_unit * self.scale)

    def _left(self, ranked: Tensor) -> Tensor:
        """The number of units to keep, a scalar, from the scores in falling order."""
        group = self.groups[0]
        left = (ranked >= self.threshold.detach().square()).sum().clamp(min=group.least)
        return (left + group.multiple - 1) // group.multiple * group.multiple

    def _backward_came(self, _) -> None:
        self._spent = True

    def masked(self, weight: Tensor, i: int, axis: int) -> Tensor:
        """The weight of a part of group ``i``, or what other gates have left of it, with the pruned units as zeros."""
        slices = next(slices for slices in self.slices[i] if slices.axis == axis)
        return masked_weight(weight, self.threshold, self.tau, slices, self.units()[i])

    def kept(self) -> Tensor:
        """Number of kept units of a group, differentiable (``kept_units``)."""
        counts = [kept_units(None, self.threshold, self.tau, self.slices[0][0], units) for units in self.units()]
        return torch.stack(counts).mean()

    @torch.no_grad()
    def hard(self, i: int = 0) -> Tensor:
        """Which units of group ``i`` are kept, (units), boolean."""
        return self.units()[i].kept

    @torch.no_grad()
    def ranked(self) -> Tensor:
        """What is compared with the threshold's square, in falling order, (units)."""
        return torch.stack([units.scores.sort(descending=True).values for units in self.units()]).mean(0)

    def extra_repr(self) -> str:
        return f"{self.name}, {self.groups[0].units} {self.groups[0].kind}"


class GatedLayer(nn.Module):
    """A linear layer or a convolution whose outputs, inputs or both are units of gates. It shares its parameters.

    ``weight`` is the masked weight, for code that reads it instead of calling the layer, such as WavLM's attention.

    Args:
        layer: an ``nn.Linear``, or an ``nn.Conv1d`` without groups and padding.
        gates: ``{axis: (gate, place of the group in it)}``.
        own: a gate that is to be a submodule of this layer, so that its threshold is among the model's parameters.
    """

    bias: Tensor | None

    def __init__(
        self, layer: nn.Linear | nn.Conv1d, gates: dict[int, tuple[UnitGate, int]], own: UnitGate | None = None
    ):
        super().__init__()
        self.weight_orig = layer.weight
        self.bias = layer.bias
        self.layer = [layer]  # in a list: the parameters are this module's own
        self.gates = [gates]  # the same: other layers hold them as well
        self.gate = own

    @property
    def weight(self) -> Tensor:
        weight = self.weight_orig
        for axis, (gate, i) in self.gates[0].items():
            weight = gate.masked(weight, i, axis)
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


def gate_groups(model: nn.Module, sets: Sequence[Sequence[Group]], threshold: float = 1e-5) -> list[UnitGate]:
    """Put a gate for each set of groups into ``model``.

    Returns: the gates, in the order of ``sets``.
    """
    groups = [group for groups in sets for group in groups]
    layers: dict[str, Any] = {part.layer: model.get_submodule(part.layer) for g in groups for part in g.parts}
    gates = [UnitGate(of, [[layers[p.layer].weight for p in g.parts] for g in of], threshold) for of in sets]
    places = {part: (gate, i) for gate in gates for i, group in enumerate(gate.groups) for part in group.parts}
    for name, layer in layers.items():
        of_layer = {axis: places[Part(name, axis)] for axis in (0, 1) if Part(name, axis) in places}
        own = next((gate for gate in gates if gate.groups[0].parts[0].layer == name), None)
        replace_module(model, name, GatedLayer(layer, of_layer, own))
    for gate in gates:
        for name in gate.groups[0].norms:
            norm: Any = model.get_submodule(name)
            replace_module(model, name, GatedLayerNorm(norm, gate))
    return gates


@torch.no_grad()
def take_gates(model: nn.Module, gates: Sequence[UnitGate], structure: Structure) -> dict[str, int]:
    """Put plain, smaller layers in the place of the gated ones.

    Returns: ``{group: units that stay}``, of the groups that have lost some.
    """
    kept = {g.name: gate.hard(i).nonzero().flatten() for gate in gates for i, g in enumerate(gate.groups)}
    groups = [group for gate in gates for group in gate.groups]
    for group in groups:
        for name in (*(part.layer for part in group.parts), *group.norms):
            module = model.get_submodule(name)
            if isinstance(module, GatedLayer | GatedLayerNorm):
                replace_module(model, name, module.plain())
    shrunk = [group for group in groups if len(kept[group.name]) < group.units]
    for group in shrunk:
        (structure.cut or cut)(model, group, kept[group.name])
    return {group.name: len(kept[group.name]) for group in shrunk}


def counts(gates: Iterable[UnitGate]) -> list[int]:
    """Number of units that each gate keeps, of each of its groups."""
    return torch.stack([gate.hard().sum() for gate in gates]).tolist()


@torch.no_grad()
def land(gates: Sequence[UnitGate], cost: Cost, budget: float) -> None:
    """Multiply every threshold by one common factor, so that the cost is just within ``budget``.

    A block is as many units of a group as its ``multiple`` says. One factor for all keeps what training found: the
    ratios of the groups' thresholds. A large block may go where a smaller one would have been enough. Then the blocks
    next to their thresholds come back, as far as they fit: no further block does.

    Args:
        gates: in the order of ``cost``.
        budget: in the unit of the cost.

    Raises:
        UserError: no factor reaches the budget: every group keeps some units, or a threshold is 0 or not finite.
    """
    events = []  # (the square of the factor over which a group loses its next block, place of the group, units left)
    for i, gate in enumerate(gates):
        ratios = (gate.ranked().double() / gate.threshold.double().square()).tolist()
        events += [(ratios[left], i, left) for left in gate.groups[0].smaller_widths]
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
            break
        factor = 1 + 1e-6  # two events closer than the numbers can tell
    _give_back(gates, cost, budget)


def _give_back(gates: Sequence[UnitGate], cost: Cost, budget: float) -> None:
    """Lower single thresholds until no block fits into the budget any more: blocks differ much in size."""
    stuck: set[int] = set()  # gates with units that are too much alike
    while True:
        left, best = counts(gates), None
        for i, gate in enumerate(gates):
            more = min(left[i] + gate.groups[0].multiple, cost.widths[i])
            if i not in stuck and more > left[i] and cost.of([*left[:i], more, *left[i + 1 :]]) <= budget:
                ranked = gate.ranked()
                nearness = float(ranked[left[i]] / gate.threshold.square())
                if best is None or nearness > best[0]:
                    best = nearness, i, ranked[left[i] : left[i] + 2]
        if best is None:
            return
        _, i, around = best
        before = gates[i].threshold.clone()
        gates[i].threshold.copy_(around.prod().pow(0.25) if len(around) == 2 else around[0].sqrt() * (1 - 1e-6))
        if counts(gates) == left or cost.of(counts(gates)) > budget:
            gates[i].threshold.copy_(before)
            stuck.add(i)


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
        uniform: keep all heads, and the same number of channels in every block, so that a stock configuration
            describes what is left.

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
        uniform: bool = False,
    ):
        groups = find_groups(model, find_linears(model, layers), structure.ties, multiple)
        sets = [[group] for group in groups]
        if uniform:
            groups = [group for group in groups if group.kind == "channels"]
            if len({group.units for group in groups}) != 1:
                raise UserError("uniform: true, but the feed-forward networks of this model are not of one width")
            sets = [groups]
        if conv:
            if structure.filters is None:
                raise UserError(
                    "conv: true, but it is not known which convolutions of this model have filters to prune"
                )
            filters = structure.filters(multiple)
            sets += [[group] for group in filters]
            for group in filters:
                for name in (*(part.layer for part in group.parts), *group.norms, *group.channel_norms):
                    model.get_submodule(name).requires_grad_(True)
        self.structure = structure
        self.weights = weight_cost(model, sets)
        self.budget = self.weights
        if macs:
            if structure.macs is None:
                raise UserError("target_macs, but it is not known how to count the multiplications of this model")
            self.budget = mac_cost(sets, structure.macs())
        most = 1 - self.budget.of([of[0].fewest for of in sets]) / self.budget.full
        if target > most:
            raise UserError(
                f"the model cannot save {100 * target:.2f} % of its {'multiplications' if macs else 'gated weights'}: "
                f"every layer keeps some units, which allows at most {100 * most:.2f} %"
            )
        self.gates = {gate.name: gate for gate in gate_groups(model, sets, threshold)}
        blocks = []
        for i, of in enumerate(sets):
            less = [groups[0].units for groups in sets]
            less[i] -= of[0].multiple
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
            for group, weights in zip(gate.groups, gate.weights):
                for part, weight in zip(group.parts, weights):
                    _, kept = found.get(part.layer, (0, weight.numel()))
                    found[part.layer] = weight.numel(), kept * left[name] / group.units
        return {layer: (total - round(kept), total) for layer, (total, kept) in found.items()}

    def group_widths(self) -> dict[str, Width]:
        """``{group: its units}``."""
        return {
            group.name: Width(group.kind, int(gate.hard(i).sum()), group.units)
            for gate in self.gates.values()
            for i, group in enumerate(gate.groups)
        }

    def collapsed(self) -> dict[str, str]:
        """The groups that would keep fewer units than they must."""
        found = {}
        for name, gate in self.gates.items():
            group, left = gate.groups[0], int(gate.hard().sum())
            over = int((gate.ranked() >= gate.threshold.square()).sum())
            if over < group.fewest == left:
                found[name] = f"the threshold leaves {over} of {group.units} {group.kind}; {left} are held, the fewest"
        return found

    def fold(self, model: nn.Module) -> dict[str, int]:
        """Put plain, smaller layers in the place of the gates, as ``take_gates``."""
        return take_gates(model, list(self.gates.values()), self.structure)
