"""Layers whose whole heads, channels or filters are gated, and the budget of a model that has such gates.

A gate belongs to a group of units (``espnet_pinch.core.units``). What decides which units it keeps is a subclass of
``GroupGate``: a learnable threshold (``espnet_pinch.core.unit_gates``), or hard-concrete samples.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from espnet_pinch.core.attach import find_linears, replace_module
from espnet_pinch.core.channels import tied_names
from espnet_pinch.core.parameters import Width
from espnet_pinch.core.score import Slices
from espnet_pinch.core.units import Group, Part, Structure, cut, find_groups, mac_cost, weight_cost
from espnet_pinch.errors import UserError


class GroupGate(nn.Module):
    """A gate over the units of one group, or of several alike that keep the same number of units.

    Args:
        groups: the units.
        weights: for each group, one for each of its parts.
    """

    def __init__(self, groups: Sequence[Group], weights: Sequence[Sequence[Tensor]]):
        super().__init__()
        self.groups = tuple(groups)
        self.name = groups[0].name if len(groups) == 1 else f"{groups[0].kind} of all blocks"
        self.weights = [list(of_group) for of_group in weights]  # not parameters of the gate: the layers hold them
        self.slices = [[Slices(part.axis, group.size) for part in group.parts] for group in groups]

    def mask(self, i: int, axis: int) -> Callable[[Tensor], Tensor]:
        """What gives the weight of a part of group ``i``, or what other gates leave of it, as the gate is now.

        Called again, it gives the same, whatever has become of the gate.
        """
        raise NotImplementedError

    def kept(self) -> Tensor:
        """Number of kept units of a group, or its expectation, a scalar, differentiable."""
        raise NotImplementedError

    def hard(self, i: int = 0) -> Tensor:
        """Which units of group ``i`` are kept, (units), boolean."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.name}, {self.groups[0].units} {self.groups[0].kind}"


Gate = TypeVar("Gate", bound=GroupGate)


def unchanged(same: bool) -> None:
    """Raise RuntimeError, as autograd does for what it keeps, if the weights are not the ``same`` as before."""
    if not same:
        raise RuntimeError("weights have been changed in place between the forward and the backward pass")


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
        self, layer: nn.Linear | nn.Conv1d, gates: Mapping[int, tuple[GroupGate, int]], own: GroupGate | None = None
    ):
        super().__init__()
        self.weight_orig = layer.weight
        self.bias = layer.bias
        self.layer = [layer]  # in a list: the parameters are this module's own
        self.gates = [gates]  # the same: other layers hold them as well
        self.gate = own

    @property
    def weight(self) -> Tensor:
        return self._through(self._masks())

    def _masks(self) -> list[Callable[[Tensor], Tensor]]:
        return [gate.mask(i, axis) for axis, (gate, i) in self.gates[0].items()]

    def _through(self, masks: Iterable[Callable[[Tensor], Tensor]]) -> Tensor:
        weight = self.weight_orig
        for mask in masks:
            weight = mask(weight)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        masks = self._masks()
        weight = self._through(masks)
        with self._again(weight, masks):
            if isinstance(self.layer[0], nn.Conv1d):
                return F.conv1d(x, weight, self.bias, self.layer[0].stride, dilation=self.layer[0].dilation)
            return F.linear(x, weight, self.bias)

    def _again(self, weight: Tensor, masks: Iterable[Callable[[Tensor], Tensor]]) -> saved_tensors_hooks:
        """Inside the block autograd does not keep the masked weight: the backward pass computes it again.

        Under autocast it keeps that weight's copy of half the size.
        """
        place, size, version = weight.data_ptr(), weight.numel(), self.weight_orig._version

        def pack(tensor: Tensor) -> Tensor | tuple:
            own = tensor.data_ptr() == place and tensor.numel() == size
            return (tensor.shape, tensor.stride()) if own else tensor

        def unpack(packed: Tensor | tuple) -> Tensor:
            if isinstance(packed, Tensor):
                return packed
            unchanged(version == self.weight_orig._version)
            with torch.no_grad():
                return self._through(masks).as_strided(*packed)

        return saved_tensors_hooks(pack, unpack)

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

    def __init__(self, norm: nn.LayerNorm, gate: GroupGate):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.norm, self.gates = [norm], [gate]  # in lists, as in GatedLayer

    def forward(self, x: Tensor) -> Tensor:  # (..., channels)
        kept = self.gates[0].hard().to(x.dtype)
        count = kept.sum().clamp(min=1)  # a sample of gates may close all of them
        centred = (x - (x * kept).sum(-1, keepdim=True) / count) * kept
        variance = centred.square().sum(-1, keepdim=True) / count
        return centred * torch.rsqrt(variance + self.norm[0].eps) * self.weight + self.bias

    def plain(self) -> nn.LayerNorm:
        """The norm that was gated, as it was."""
        return self.norm[0].train(self.training)


def gate_groups(
    model: nn.Module,
    sets: Sequence[Sequence[Group]],
    build: Callable[[Sequence[Group], Sequence[Sequence[Tensor]]], Gate],
) -> list[Gate]:
    """Put a gate for each set of groups into ``model``.

    Args:
        build: a gate, from the groups and the weights of their parts.

    Returns: the gates, in the order of ``sets``.
    """
    groups = [group for groups in sets for group in groups]
    layers: dict[str, Any] = {part.layer: model.get_submodule(part.layer) for g in groups for part in g.parts}
    gates = [build(of, [[layers[p.layer].weight for p in g.parts] for g in of]) for of in sets]
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
def take_gates(model: nn.Module, gates: Sequence[GroupGate], structure: Structure) -> dict[str, int]:
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


def counts(gates: Iterable[GroupGate]) -> list[int]:
    """Number of units that each gate keeps, of each of its groups."""
    return torch.stack([gate.hard().sum() for gate in gates]).tolist()


class GroupGates(Generic[Gate]):
    """The gates of a model whose units are heads, channels and filters, and their budget.

    Args:
        model: gets the gates.
        layers: pattern of the names of the linear layers whose heads and channels they are.
        build: as for ``gate_groups``.
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
        build: Callable[[Sequence[Group], Sequence[Sequence[Tensor]]], Gate],
        structure: Structure,
        conv: bool,
        multiple: int,
        macs: bool,
        target: float,
        uniform: bool = False,
    ):
        linears, ties = list(find_linears(model, layers)), structure.ties
        if uniform:
            if not structure.stock:
                raise UserError(
                    "uniform: true leaves a model that transformers alone can load, but this one was cut in another "
                    "way before (its config.json has espnet_pinch_widths): start from another one, or leave uniform out"
                )
            ties = [tied for tied in ties if not tied.head_size]
            linears = tied_names(linears, ties)
            every = tied_names((name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)), ties)
            if left_out := [name for name in every if name not in linears]:
                raise UserError(
                    "uniform: true prunes the feed-forward networks of all blocks alike, and the setting layers leaves "
                    f"out {left_out[0]}"
                )
        groups = find_groups(model, linears, ties, multiple)
        sets = [[group] for group in groups]
        if uniform:
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
        most = self.budget.saved([of[0].fewest for of in sets])
        if target > most:
            raise UserError(
                f"the model cannot save {100 * target:.2f} % of its {'multiplications' if macs else 'gated weights'}: "
                f"every layer keeps some units, which allows at most {100 * most:.2f} %"
            )
        self.gates: dict[str, Gate] = {gate.name: gate for gate in gate_groups(model, sets, build)}

    def kept(self) -> Tensor:
        """The part of the budget that is kept, a scalar, differentiable; as a number of weights, on eta's scale."""
        kept = self.budget.of([gate.kept() for gate in self.gates.values()])
        return kept * (self.weights.full / self.budget.full)

    def sparsity(self) -> float:
        """The fraction of the gated weights that is pruned."""
        return self.weights.saved(counts(self.gates.values()))

    def reached(self) -> float:
        """The fraction of the budget that is pruned."""
        return self.budget.saved(counts(self.gates.values()))

    def layer_counts(self) -> dict[str, tuple[float, int]]:
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

    def fold(self, model: nn.Module) -> dict[str, int]:
        """Put plain, smaller layers in the place of the gates, as ``take_gates``."""
        return take_gates(model, list(self.gates.values()), self.structure)
