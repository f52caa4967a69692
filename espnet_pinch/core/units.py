"""Whole heads, channels and filters: which weights belong to them, what they cost, and how they are cut out.

A *group* is the units of one place of a network: the heads of an attention, the channels of a feed-forward network,
the filters of a convolution. A unit has weights in several layers, its *parts*: a head has rows of q, k and v and
columns of out. A network without a unit's weights computes the same as one with zeros there, and is smaller and dense.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espnet_pinch.core.channels import TRANSFORMER_TIES, Tied, find_channels
from espnet_pinch.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """What a layer has of the units of a group.

    Attributes:
        layer: name of a linear layer or a convolution.
        axis: 0 where the units are its outputs, 1 where they are its inputs.
    """

    layer: str
    axis: int


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that share a threshold.

    Attributes:
        name: of the module that they are the units of; names the width of the group in a folded model's record.
        kind: "heads", "channels" or "filters".
        units: number of units.
        parts: the layers that hold their weights; the first one produces them.
        size: channels of one unit.
        norms: layer norms over the channels of these units. They see the kept ones alone.
        channel_norms: norms that treat each channel on its own.
        multiple: the number of kept units is a multiple of it, of which there is one at least.
    """

    name: str
    kind: str
    units: int
    parts: tuple[Part, ...]
    size: int = 1
    norms: tuple[str, ...] = ()
    channel_norms: tuple[str, ...] = ()
    multiple: int = 1

    def within(self, prefix: str) -> "Group":
        """The same group by the names that it has in a larger model, which begin with ``prefix``."""
        return dataclasses.replace(
            self,
            name=prefix + self.name,
            parts=tuple(Part(prefix + part.layer, part.axis) for part in self.parts),
            norms=tuple(prefix + name for name in self.norms),
            channel_norms=tuple(prefix + name for name in self.channel_norms),
        )

    @property
    def smaller_widths(self) -> range:
        """The numbers of units that it can keep, but for all of them, from the largest to the fewest."""
        return range((self.units - 1) // self.multiple * self.multiple, 0, -self.multiple)

    @property
    def fewest(self) -> int:
        """The smallest number of units that it can keep."""
        return [self.units, *self.smaller_widths][-1]


def find_groups(model: nn.Module, names: Iterable[str], ties: Sequence[Tied], multiple: int = 1) -> list[Group]:
    """The heads and channels of linear layers, in the order of ``names``.

    Args:
        names: linear layers of ``model``.
        ties: of the model.
        multiple: of the numbers of channels; heads go one by one.

    Raises:
        UserError: as ``find_channels``; or an attention's layers have no equal heads.
    """
    groups = []
    for channels in find_channels(names, ties):
        parent, _, column = channels.column.rpartition(".")
        tied = next(tied for tied in ties if tied.column == column)
        size = getattr(model.get_submodule(parent), tied.head_size, None) if tied.head_size else 1
        width: int = _layer(model, channels.column).in_features
        if (
            not isinstance(size, int)
            or size < 1
            or width % size
            or any(_rows(model, row) != width for row in channels.rows)
        ):
            raise UserError(
                f"{parent or 'the model'} has no units of one size in {tied}"
                + (f", or its attribute {tied.head_size} does not say that size" if tied.head_size else "")
                + ": choose other layers by the setting layers"
            )
        parts = (*(Part(row, 0) for row in channels.rows), Part(channels.column, 1))
        units = width // size
        kind = "heads" if tied.head_size else "channels"
        groups.append(Group(parent, kind, units, parts, size, multiple=1 if tied.head_size else multiple))
    return groups


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a method that prunes whole heads, channels or filters has to know of a model.

    Attributes:
        ties: its layers that share channels.
        filters: the groups of its convolutions; their widths are multiples of the argument.
        cut: takes units out of the model, as ``cut`` does, and whatever else belongs to them.
        macs: ``{module: multiplications}`` of one forward pass, "" for the whole model.
        stock: whether the library that the model is of can describe its widths.
        record: writes ``{group: units left}`` of what was cut to where the model's widths are described.
    """

    ties: Sequence[Tied] = TRANSFORMER_TIES
    filters: Callable[[int], Sequence[Group]] | None = None
    cut: Callable[[nn.Module, Group, Tensor], None] | None = None
    macs: Callable[[], Mapping[str, float]] | None = None
    stock: bool = True
    record: Callable[[Mapping[str, int]], None] | None = None


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs, as a function of how many units each group keeps.

    Attributes:
        terms: ``(amount, places)``: what a part of the model costs at full width, and the places of the gates whose
            numbers of units it is proportional to.
        widths: units of each gate at full width.
        multiples: units in a block of each gate.
    """

    terms: tuple[tuple[float, tuple[int, ...]], ...]
    widths: tuple[int, ...]
    multiples: tuple[int, ...]

    def of(self, kept):
        """The cost of a model.

        Args:
            kept: units that each gate keeps, numbers or scalar tensors.
        """
        total = 0.0
        for amount, groups in self.terms:
            for i in groups:
                amount = amount * kept[i] / self.widths[i]
            total = total + amount
        return total

    @property
    def full(self) -> float:
        return self.of(self.widths)

    def saved(self, kept):
        """The fraction of the cost at full width that a model saves; ``kept`` is as for ``of``."""
        full = self.full
        return (full - self.of(kept)) / full  # of whole numbers, the float nearest to the fraction

    def wider(self, kept: Sequence[int], i: int) -> int:
        """The number of units of gate ``i`` with one more block of them, if there is one."""
        return min(kept[i] + self.multiples[i], self.widths[i])

    def room(self, kept: Sequence[int], target: float) -> list[int]:
        """Places of the gates to which one more block of units may come back: ``target`` is still saved."""
        found = []
        for i in range(len(self.widths)):
            more = self.wider(kept, i)
            if more > kept[i] and self.saved([*kept[:i], more, *kept[i + 1 :]]) >= target:
                found.append(i)
        return found


def weight_cost(model: nn.Module, sets: Sequence[Sequence[Group]]) -> Cost:
    """The gated weights of a model that has no gates yet. The groups of a set keep the same number of units."""
    layers: dict[str, list[int]] = {}
    for i, groups in enumerate(sets):
        for part in (part for group in groups for part in group.parts):
            layers.setdefault(part.layer, []).append(i)
    sizes = {name: _layer(model, name).weight.numel() for name in layers}
    return Cost(
        tuple((float(sizes[name]), tuple(of_layer)) for name, of_layer in layers.items()),
        tuple(groups[0].units for groups in sets),
        tuple(groups[0].multiple for groups in sets),
    )


def mac_cost(sets: Sequence[Sequence[Group]], macs: Mapping[str, float]) -> Cost:
    """The multiplications of the whole model.

    A head's and a channel's are a share of its module's. A convolution's, and those of the layer behind the last one,
    are proportional to the widths on both sides.

    Args:
        macs: ``{module: multiplications}`` at full width, "" for the whole model.
    """
    shares: dict[str, list[int]] = {}
    for i, groups in enumerate(sets):
        for group in groups:
            for name in [group.name] if group.kind != "filters" else [part.layer for part in group.parts]:
                shares.setdefault(name, []).append(i)
    terms = [(macs[name], tuple(of_module)) for name, of_module in shares.items()]
    rest = macs[""] - sum(amount for amount, _ in terms)
    return Cost(
        (*terms, (rest, ())),
        tuple(groups[0].units for groups in sets),
        tuple(groups[0].multiple for groups in sets),
    )


@torch.no_grad()
def cut(model: nn.Module, group: Group, kept: Tensor) -> None:
    """Take the units out of ``model`` that are not ``kept``. Its layers are plain ones before and afterwards.

    Args:
        kept: places of the units that stay, (units left,).
    """
    channels = (kept[:, None] * group.size + torch.arange(group.size, device=kept.device)).flatten()
    for part in group.parts:
        layer = _layer(model, part.layer)
        layer.weight = _selected(layer.weight, channels, part.axis)
        if part.axis == 0 and layer.bias is not None:
            layer.bias = _selected(layer.bias, channels)
        names = ("out_channels", "in_channels") if isinstance(layer, nn.Conv1d) else ("out_features", "in_features")
        setattr(layer, names[part.axis], len(channels))
    for name in (*group.norms, *group.channel_norms):
        norm = _layer(model, name)
        norm.weight, norm.bias = _selected(norm.weight, channels), _selected(norm.bias, channels)
        if isinstance(norm, nn.GroupNorm):
            norm.num_groups = norm.num_channels = len(channels)
        else:
            norm.normalized_shape = (len(channels),)


def _layer(model: nn.Module, name: str) -> Any:
    """A linear layer, a convolution or a norm of a model; torch types what it finds as any module."""
    return model.get_submodule(name)


def _rows(model: nn.Module, name: str) -> int:
    return len(_layer(model, name).weight)


def _selected(parameter: nn.Parameter, places: Tensor, axis: int = 0) -> nn.Parameter:
    return nn.Parameter(parameter.index_select(axis, places), requires_grad=parameter.requires_grad)
