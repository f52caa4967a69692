"""Channels that the layers of a Transformer block share, and smaller matrices where whole channels are zero.

Layers that share their channels are called tied. Channel m of an attention is row m of q, k and v, and column m of
out. Channel n of a feed-forward network is row n of fc1 and column n of fc2 (arXiv 2505.22608, section 4).
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
    """The names, within its block, of the tied layers of an attention or of a feed-forward network.

    Attributes:
        rows: the layers that have the channels as outputs. Together with ``column`` they are an even number of
            layers, see ``Channels.pairs``.
        column: the layer that has the channels as inputs.
        head_size: of an attention, the attribute of its module that holds the number of channels of a head. Heads
            need all of their channels: a channel without weights is filled with zeros.
    """

    rows: tuple[str, ...]
    column: str
    head_size: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.rows)} and {self.column}"


# The ties of the layers that are gated by default.
TRANSFORMER_TIES = (
    Tied(("q_proj", "k_proj", "v_proj"), "out_proj", head_size="head_dim"),
    Tied(("intermediate_dense",), "output_dense"),
)


@dataclasses.dataclass(frozen=True)
class Channels:
    """Full names of the linear layers that share their channels.

    Attributes:
        rows: the layers that have the channels as outputs.
        column: the layer that has the channels as inputs.
    """

    rows: tuple[str, ...]
    column: str

    @property
    def members(self) -> tuple[str, ...]:
        return (*self.rows, self.column)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of layers: q and k, v and out, fc1 and fc2. A channel that is 0 in one has no effect in the other."""
        return list(zip(self.members[::2], self.members[1::2]))


def tied_names(names: Iterable[str], ties: Sequence[Tied]) -> list[str]:
    """Those of these layers that share channels."""
    own = {layer for tied in ties for layer in (*tied.rows, tied.column)}
    return [name for name in names if name.rpartition(".")[2] in own]


def find_channels(names: Iterable[str], ties: Sequence[Tied] = TRANSFORMER_TIES) -> list[Channels]:
    """Group linear layers by the channels they share, in the order of ``names``.

    Args:
        ties: the ties of the model. No layer name occurs in two of them.

    Raises:
        UserError: a layer in ``names`` is not tied, or a layer that shares its channels is not in ``names``.
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
            f"layers that share channels ({'; '.join(map(str, ties)) or 'none in this model'}) must be gated together, "
            f"and no other layer may be gated; {left_out[0]} breaks this rule: choose layers by the setting layers"
        )
    return list(found.values())


class KeptRows(nn.Module):
    """A linear layer that computes only some of its output channels; the others are 0.

    ``weight`` and ``bias`` have the shapes of the whole layer, for code that reads them instead of calling the layer,
    such as WavLM's attention.

    Args:
        in_features, width: inputs and outputs of the whole layer.
        kept: number of output channels left.
    """

    kept: Tensor

    def __init__(self, in_features: int, width: int, kept: int):
        super().__init__()
        self.width = width
        self.small = nn.Linear(in_features, kept)
        self.register_buffer("kept", torch.arange(kept))  # (kept,) indices among the width channels

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
    """A linear layer that reads only some of its input channels; ``weight`` and ``bias`` are as in ``KeptRows``.

    Args:
        width, out_features: inputs and outputs of the whole layer.
        kept: number of input channels left.
    """

    kept: Tensor

    def __init__(self, width: int, out_features: int, kept: int):
        super().__init__()
        self.width = width
        self.small = nn.Linear(kept, out_features)
        self.register_buffer("kept", torch.arange(kept))  # (kept,) indices among the width channels

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
    """Give the layers of ``model`` the shapes that ``compact`` left, so that it can load a compacted checkpoint.

    Args:
        channels: ``{layer: number of channels left}``, of those that ``compact`` returned.
        ties: the ties of the model.

    Raises:
        UserError: a layer does not share its channels with another layer.
    """
    for name, kept in channels.items():
        linear, own = cast(nn.Linear, model.get_submodule(name)), name.rpartition(".")[2]
        tied = next((tied for tied in ties if own in (*tied.rows, tied.column)), None)
        if tied is None:
            raise UserError(f"{name} has been made smaller, but it shares its channels with no other layer")
        new: nn.Linear | KeptRows | KeptColumns
        rows, columns = linear.weight.shape
        if own == tied.column:
            new = KeptColumns(columns, rows, kept) if tied.head_size else nn.Linear(kept, rows)
        else:
            new = KeptRows(columns, rows, kept) if tied.head_size else nn.Linear(columns, kept)
        replace_module(model, name, new.to(linear.weight))


@torch.no_grad()
def compact(model: nn.Module, names: Iterable[str], ties: Sequence[Tied] = TRANSFORMER_TIES) -> dict[str, Tensor]:
    """Remove the channels of ``model`` that have no effect. It computes the same with fewer parameters.

    A channel of q and k is removed if it is all zeros in q or in k, and a channel of v and out likewise. A channel of
    fc1 and fc2 is removed if it is all zeros in fc1 (the activation of 0 is 0) or in fc2. The zeros of a row include
    its bias.

    Args:
        model: a model with folded layers.
        names, ties: the layers, as for ``find_channels``.

    Returns: ``{layer: channels left}``, as their places among the layer's channels.
    """
    left: dict[str, Tensor] = {}
    for group in find_channels(names, ties):
        linears = {name: cast(nn.Linear, model.get_submodule(name)) for name in group.members}
        alive = {name: _alive_rows(linears[name]) for name in group.rows}
        alive[group.column] = (linears[group.column].weight != 0).any(0)
        for pair in group.pairs:
            kept = torch.stack([alive[name] for name in pair]).all(0).nonzero().flatten()
            if kept.numel() == 0:
                kept = kept.new_zeros(1)  # no matrix may be empty; one channel of zeros does no harm
            left.update(dict.fromkeys(pair, kept))
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
