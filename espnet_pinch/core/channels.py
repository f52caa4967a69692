"""Tied channels of a Transformer block, and smaller matrices for a model in which whole channels are zero.

A channel of an attention is row m of q, k and v with column m of out; a channel of a feed-forward network is row n
of fc1 with column n of fc2 (arXiv 2505.22608, section 4).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from espnet_pinch.core.attach import replace_module
from espnet_pinch.errors import UserError

# Names of transformers: layers whose rows, and the layer whose columns are the channels.
ATTENTION = (("q_proj", "k_proj", "v_proj"), "out_proj")
FEED_FORWARD = (("intermediate_dense",), "output_dense")


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


def find_channels(names: Iterable[str]) -> list[Channels]:
    """Group linear layers by the channels they share, in the order of ``names``.

    Raises:
        ValueError: a layer whose partners are not among ``names``.
    """
    names = list(names)
    found: dict[str, Channels] = {}
    for name in names:
        parent, _, own = name.rpartition(".")
        for rows, column in (ATTENTION, FEED_FORWARD):
            if own in (*rows, column):
                found[parent] = Channels(tuple(f"{parent}.{row}" for row in rows), f"{parent}.{column}")
    grouped = [member for group in found.values() for member in group.members]
    left_out = [member for member in grouped if member not in names] or [n for n in names if n not in grouped]
    if left_out:
        raise UserError(
            "channels are tied: of an attention q, k, v and out, of a feed-forward network fc1 and fc2 have to be "
            f"gated together and nothing else; this does not hold for {left_out[0]}"
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


def make_room(model: nn.Module, channels: Mapping[str, int]) -> None:
    """Give layers of ``model`` the shapes that ``compact`` has left them with, for a checkpoint to be loaded into.

    Args:
        channels: ``{layer: channels left}``, what ``compact`` returned.
    """
    for name, kept in channels.items():
        linear, own = cast(nn.Linear, model.get_submodule(name)), name.rpartition(".")[2]
        new: nn.Linear | KeptRows | KeptColumns
        rows, columns = linear.weight.shape
        if own in FEED_FORWARD[0]:
            new = nn.Linear(columns, kept)
        elif own == FEED_FORWARD[1]:
            new = nn.Linear(kept, rows)
        elif own in ATTENTION[0]:
            new = KeptRows(columns, rows, kept)
        else:
            new = KeptColumns(columns, rows, kept)
        replace_module(model, name, new.to(linear.weight))


@torch.no_grad()
def compact(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Take the channels out of ``model`` that compute nothing; it computes the same with fewer parameters.

    A channel of q and k goes where either has nothing but zeros in it, and so does one of v and out; a channel of
    fc1 and fc2 goes where fc1 has nothing but zeros (the activation of 0 is 0) or fc2 has.

    Args:
        model: with folded layers.
        names: the layers, as of ``find_channels``.

    Returns: ``{layer: channels left}``.
    """
    left: dict[str, int] = {}
    for group in find_channels(names):
        linears = {name: cast(nn.Linear, model.get_submodule(name)) for name in group.members}
        alive = {name: _alive_rows(linears[name]) for name in group.rows}
        alive[group.column] = (linears[group.column].weight != 0).any(0)
        for pair in group.pairs:
            kept = torch.stack([alive[name] for name in pair]).all(0).nonzero().flatten()
            if kept.numel() == 0:
                kept = kept.new_zeros(1)  # a matrix without rows is no use to anyone; a row of zeros does no harm
            left.update(dict.fromkeys(pair, kept.numel()))
            make_room(model, {name: kept.numel() for name in pair})
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
