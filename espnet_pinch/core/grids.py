"""The values that the weights of a quantised layer may take, and rounding to them.

A weight is ``sign * level * scale``. The levels are whole numbers from 1 to 127, common to the layer; every output
channel has a scale. A weight of 0 stays 0, and no other becomes 0: zeros are the business of the gates. So every
quantised weight is a whole number that fits in 8 bits, its *code*, times the scale of its output channel, however few
bits it takes.

- 8 bits: all levels from 1 to 127. The scale makes the largest weight of the channel 127.
- b = 4, 3 or 2 bits: the sign and ``2^(b-1)`` levels, fitted to the layer's weights (Lloyd's algorithm, least squares).
  The scale is the mean magnitude of the channel's kept weights, times a factor of the layer.
- ternary: one level, so that a kept weight is its sign, one bit. The scale is the mean magnitude of the channel's kept
  weights, which is best in the sense of least squares (Rastegari et al., arXiv 1603.05279; Li et al., 1605.04711).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from espnet_pinch.core.score import PIECE

TERNARY = "ternary"
LARGEST = 127  # of a code: what 8 bits hold with either sign
SAMPLE = 1 << 16  # weights of a layer that its levels are fitted to
ROUNDS = 10  # of Lloyd's algorithm


def bits_of(width: int | str) -> int:
    """Bits of a kept weight: a number of bits, or "ternary"."""
    return 1 if width == TERNARY else int(width)


class Codes(NamedTuple):
    """A quantised weight.

    Attributes:
        codes: (out, ...) of the weight's type, whole numbers from -127 to 127.
        scales: (out,), at least 0.
    """

    codes: Tensor
    scales: Tensor

    def weight(self) -> Tensor:
        """The weight: codes times scales."""
        return self.codes * self.scales.view(-1, *[1] * (self.codes.dim() - 1))


class Grid(nn.Module):
    """The levels of a layer.

    Args:
        width: 8, 4, 3, 2 or "ternary".

    >>> grid = Grid("ternary")
    >>> weight = torch.tensor([[0.0, 1.0, -3.0]])
    >>> grid.round(weight).weight().tolist()
    [[0.0, 2.0, -2.0]]
    """

    levels: Tensor
    unit: Tensor

    def __init__(self, width: int | str):
        super().__init__()
        self.width, self.bits = width, bits_of(width)
        count = LARGEST if self.bits == 8 else 2 ** (self.bits - 1)
        # Buffers, because a resumed or evaluated model must round as it did in training.
        self.register_buffer("levels", torch.arange(1.0, count + 1))  # (levels,) whole numbers that rise
        self.register_buffer("unit", torch.ones(()))  # a scale over the channel's mean magnitude

    @torch.no_grad()
    def fit(self, weight: Tensor) -> None:
        """Fit the levels to the weights of a layer that are not 0.

        It is computed on the CPU, from a sample in a fixed order: all processes of a distributed run get the same.

        Args:
            weight: (out, ...).
        """
        if self.bits in (1, 8):
            return
        rows = weight.detach().float().flatten(1)
        scales = _mean(rows.abs(), torch.empty_like(rows))
        stride = max(1, rows.numel() // SAMPLE)
        while math.gcd(stride, rows.shape[1]) > 1:  # it would pass the same columns in every row
            stride += 1
        place = torch.arange(0, rows.numel(), stride, device=rows.device)
        values, size = rows.flatten()[place].abs().cpu(), scales[place // rows.shape[1]].cpu()
        kept = values > 0
        ratio, cost = (values / size)[kept], size[kept].square()
        if not len(ratio):
            return
        count = len(self.levels)
        levels = torch.quantile(ratio, (torch.arange(count) + 0.5) / count)
        for _ in range(ROUNDS):
            near = torch.bucketize(ratio, _middles(levels))
            total, weights = (torch.zeros(count).index_add_(0, near, x) for x in (cost * ratio, cost))
            levels = torch.where(weights > 0, total / weights.clamp(min=1e-30), levels)
        unit = levels[-1] / LARGEST
        self.levels.copy_((levels / unit).round().clamp(1, LARGEST))
        self.unit.copy_(unit)

    @torch.no_grad()
    def round(self, weight: Tensor) -> Codes:
        """The nearest codes.

        Args:
            weight: (out, ...).
        """
        rows = weight.flatten(1)
        codes, scales = rows.new_empty(rows.shape), rows.new_empty(len(rows))  # contiguous, as rows need not be
        pieces = list(zip(*(_pieces(tensor, rows.shape[1]) for tensor in (rows, codes, scales))))
        nearest = self._nearest().to(rows.dtype)
        sizes = torch.empty_like(pieces[0][1])  # memory that all pieces use: new memory takes longer than the products
        places = torch.empty_like(sizes, dtype=torch.int32)
        for row, code, scale in pieces:
            size, place = torch.abs(row, out=sizes[: len(row)]), places[: len(row)]
            scale.copy_(size.amax(1) / LARGEST if self.bits == 8 else _mean(size, code) * self.unit)
            if self.bits == 8:
                torch.clamp(size.div_(_divisor(scale)[:, None]).round_(), 1, LARGEST, out=code)
            elif self.bits > 1:
                size.div_(_divisor(scale)[:, None] / 2).ceil_().clamp_(max=len(nearest) - 1)
                place.copy_(size).clamp_(1, len(nearest) - 1)  # also where the weight is not a number
                torch.index_select(nearest, 0, place.view(-1), out=code.view(-1))
            sign = torch.sign(row, out=size)
            if self.bits == 1:
                code.copy_(sign)
            else:
                code.mul_(sign)
        return Codes(codes.view_as(weight), scales)

    def _nearest(self) -> Tensor:
        """The level of a weight of size x, in units of the scale, is in place ceil(2 x).

        Levels are whole numbers, so halves of whole numbers are where one ends and the next begins.
        """
        halves = torch.arange(2 * LARGEST + 2, device=self.levels.device) / 2
        return self.levels[torch.bucketize(halves, _middles(self.levels))]

    def extra_repr(self) -> str:
        return f"{self.width}"


def _pieces(tensor: Tensor, width: int) -> tuple[Tensor, ...]:
    """Rows of a tensor, a few at a time: on a CPU as many of ``width`` as stay in the cache, elsewhere all of them."""
    return tensor.split(max(1, PIECE // width)) if tensor.device.type == "cpu" else (tensor,)


def _middles(levels: Tensor) -> Tensor:
    """Where one level ends and the next begins."""
    return (levels[1:] + levels[:-1]) / 2


def _mean(sizes: Tensor, scratch: Tensor) -> Tensor:
    """The mean of the values of each row that are not 0, or 0, of values of at least 0: (out, n) -> (out,).

    ``scratch``, of the same shape, is written to.
    """
    counts = torch.sign(sizes, out=scratch).sum(1, dtype=torch.float32)  # booleans would take longer
    return sizes.sum(1) / counts.clamp(min=1)


def _divisor(scales: Tensor) -> Tensor:
    """The scales, with 1 for those of channels without weights."""
    return torch.where(scales > 0, scales, 1)
