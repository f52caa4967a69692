"""Tied channels of a Transformer block, and smaller matrices for a model in which whole channels are zero.

A channel of an attention is row m of q, k and v with column m of out; a channel of a feed-forward network is row n
of fc1 with column n of fc2 (arXiv 2505.22608, section 4).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from espnet_pinch.core.attach import replace_module
from espnet_pinch.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tied:
    """How the layers of one network of a block that share their channels are called in it.

    Attributes:
        rows: layers whose output channels these are; an even number of layers with ``column``, see ``Channels.pairs``.
        column: the layer whose input channels they are.
        full_width: what lies between the layers needs every channel, as an attention's heads do; a channel without
            weights is there as zeros.
    """

    rows: tuple[str, ...]
    column: str
    full_width: bool = False

    def __str__(self) -> str:
        return f"{', '.join(self.rows)} and {self.column}"


# Of the layers that are gated where nothing else is said.
TRANSFORMER_TIES = (
    Tied(("q_proj", "k_proj", "v_proj"), "out_proj", full_width=True),
    Tied(("intermediate_dense",), "output_dense"),
)


@dataclasses.dataclass(frozen=True)
class Channels:
    """Names of the linear layers that share their channels.

    Attributes:
        rows: layers whose output channels these are.
        column: the layer whose input channels they are.
    """

    rows: tuple[str, ...]
    column: str

    @property
    def members(self) -> tuple[str, ...]:
        return (*self.rows, self.column)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Layers in which a channel is 0 as soon as it is 0 in one of the two: q and k, v and out, fc1 and fc2."""
        return list(zip(self.members[::2], self.members[1::2]))


def find_channels(names: Iterable[str], ties: Sequence[Tied] = TRANSFORMER_TIES) -> list[Channels]:
    """Group linear layers by the channels they share, in the order of ``names``.

    Args:
        ties: of the model; they have no name of a layer in common.

    Raises:
        ValueError: a layer whose partners are not among ``names``.
    """
    names = list(names)
    found: dict[str, Channels] = {}
    for name in names:
        parent, _, own = name.rpartition(".")
        for tied in ties:
            if own in (*tied.rows, tied.column):
                rows = tuple(f"{parent}.{row}" for row in tied.rows)
                found[f"{parent}.{tied.column}"] = Channels(rows, f"{parent}.{tied.column}")
    grouped = [member for group in found.values() for member in group.members]
    left_out = [member for member in grouped if member not in names] or [n for n in names if n not in grouped]
    if left_out:
        raise UserError(
            f"channels are tied: of {', and of '.join(map(str, ties)) or 'no layers here'} all have to be gated, and "
            f"no other layer; this does not hold for {left_out[0]}"
        )
    return list(found.values())


class KeptRows(nn.Module):
    """A linear layer with a part of its output channels; the others are 0.

    ``weight`` and ``bias`` are those of the whole layer, for code that reads them instead of calling the layer, as
    WavLM's attention does.

    Args:
        in_features, width: as of the whole layer.
        kept: number of output channels left.
    """

    kept: Tensor

    def __init__(self, in_features: int, width: int, kept: int):
        super().__init__()
        self.width = width
        self.small = nn.Linear(in_features, kept)
        self.register_buffer("kept", torch.arange(kept))  # (kept,) places among the width channels

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., width)
        y = self.small(x)
        return y.new_zeros(*y.shape[:-1], self.width).index_copy(-1, self.kept, y)

    @property
    def weight(self) -> Tensor:
        small = self.small.weight
        return small.new_zeros(self.width, small.shape[1]).index_copy(0, self.kept, small)

    @property
    def bias(self) -> Tensor:
        return self.small.bias.new_zeros(self.width).index_copy(0, self.kept, self.small.bias)


class KeptColumns(nn.Module):
    """A linear layer that reads a part of its input channels; ``weight`` and ``bias`` as of ``KeptRows``.

    Args:
        width, out_features: as of the whole layer.
        kept: number of input channels left.
    """

    kept: Tensor

    def __init__(self, width: int, out_features: int, kept: int):
        super().__init__()
        self.width = width
        self.small = nn.Linear(kept, out_features)
        self.register_buffer("kept", torch.arange(kept))  # (kept,) places among the width channels

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., out)
        return self.small(x.index_select(-1, self.kept))

    @property
    def weight(self) -> Tensor:
        small = self.small.weight
        return small.new_zeros(small.shape[0], self.width).index_copy(1, self.kept, small)

    @property
    def bias(self) -> Tensor:
        return self.small.bias


def make_room(model: nn.Module, channels: Mapping[str, int], ties: Sequence[Tied] = TRANSFORMER_TIES) -> None:
    """Give layers of ``model`` the shapes that ``compact`` has left them with, for a checkpoint to be loaded into.

    Args:
        channels: ``{layer: channels left}``, what ``compact`` returned.
        ties: of the model.

    Raises:
        ValueError: a layer that shares its channels with no other.
    """
    for name, kept in channels.items():
        linear, own = cast(nn.Linear, model.get_submodule(name)), name.rpartition(".")[2]
        tied = next((tied for tied in ties if own in (*tied.rows, tied.column)), None)
        if tied is None:
            raise UserError(f"{name} has been made smaller, and shares its channels with no other layer")
        new: nn.Linear | KeptRows | KeptColumns
        rows, columns = linear.weight.shape
        if own == tied.column:
            new = KeptColumns(columns, rows, kept) if tied.full_width else nn.Linear(kept, rows)
        else:
            new = KeptRows(columns, rows, kept) if tied.full_width else nn.Linear(columns, kept)
        replace_module(model, name, new.to(linear.weight))


@torch.no_grad()
def compact(model: nn.Module, names: Iterable[str], ties: Sequence[Tied] = TRANSFORMER_TIES) -> dict[str, int]:
    """Take the channels out of ``model`` that compute nothing; it computes the same with fewer parameters.

    A channel of q and k goes where either has nothing but zeros in it, and so does one of v and out; a channel of
    fc1 and fc2 goes where fc1 has nothing but zeros (the activation of 0 is 0) or fc2 has.

    Args:
        model: with folded layers.
        names, ties: the layers, as of ``find_channels``.

    Returns: ``{layer: channels left}``.
    """
    left: dict[str, int] = {}
    for group in find_channels(names, ties):
        linears = {name: cast(nn.Linear, model.get_submodule(name)) for name in group.members}
        alive = {name: _alive_rows(linears[name]) for name in group.rows}
        alive[group.column] = (linears[group.column].weight != 0).any(0)
        for pair in group.pairs:
            kept = torch.stack([alive[name] for name in pair]).all(0).nonzero().flatten()
            if kept.numel() == 0:
                kept = kept.new_zeros(1)  # a matrix without rows is no use to anyone; a row of zeros does no harm
            left.update(dict.fromkeys(pair, kept.numel()))
            make_room(model, {name: kept.numel() for name in pair}, ties)
            for name in pair:
                old, new = linears[name], model.get_submodule(name).train(linears[name].training)
                if isinstance(new, KeptRows | KeptColumns):
                    new.kept.copy_(kept)
                    new = new.small
                small = cast(nn.Linear, new)
                small.weight.copy_(old.weight[:, kept] if name == group.column else old.weight[kept])
                small.bias.copy_(old.bias if name == group.column else old.bias[kept])
    return left


def _alive_rows(linear: nn.Linear) -> Tensor:
    return (linear.weight != 0).any(1) | (linear.bias != 0)
