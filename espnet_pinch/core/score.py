"""The score that a gate compares with its threshold, and the gradients through that comparison.

A gate keeps or prunes *units* of a weight. A unit has one score ``s`` and is kept if ``s >= t^2``. In the paper a
unit is a single weight with the score ``W^2`` (arXiv 2505.22608, section 2): ``Magnitude``. A larger unit, such as a
head of an attention, has weights in several layers, and its score is the mean of their squares: ``Slices``. With the
soft mask
``M = sigmoid((s - t^2) / tau)`` in place of the hard one, the masked weight ``W * M`` has the gradients

    d / dW = g M + (gradient of the score) * S    S = (sum over the unit of g W) * M (1 - M) / tau
    d / dt = - 2 t * sum over the units of S

for an incoming gradient ``g``. ``S`` is the gradient of the score itself. Where the score is a tensor of its own,
autograd adds up the ``S`` of all layers that share the unit, and carries the sum back to their weights once.
``Magnitude`` has no such tensor: it computes all of it in fewer passes over the weight.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 1 << 17  # elements; a few pieces together fit in the L2 cache

# Of the weight (None where only units are counted), the threshold, and the scores where these are given.
Gradients = tuple[Tensor | None, Tensor, Tensor | None]


class Units(NamedTuple):
    """Units with weights in several layers.

    Attributes:
        scores: (units), computed from all of their weights.
        kept: (units), boolean, the hard mask.
    """

    scores: Tensor
    kept: Tensor


class Score:
    """What the units of a weight are, and the passes of a gate over it.

    ``units`` are those of several layers; None where each weight is a unit of its own.
    """

    def apply(self, weight: Tensor, threshold: Tensor, units: Units | None = None) -> Tensor:
        """``W * M_hard``, of the shape of ``weight``."""
        raise NotImplementedError

    def count(self, weight: Tensor, threshold: Tensor, units: Units | None = None) -> Tensor:
        """Number of kept units, a scalar of int64."""
        raise NotImplementedError

    def masked_backward(
        self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float, units: Units | None = None
    ) -> Gradients:
        """The gradients for ``grad``, the gradient of ``apply``'s result; may overwrite it."""
        raise NotImplementedError

    def count_backward(
        self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float, units: Units | None = None
    ) -> Gradients:
        """The gradients for ``grad``, the gradient of the number of kept units, a scalar."""
        raise NotImplementedError


class Magnitude(Score):
    """The paper's score: every weight is a unit with the score ``W^2``.

    The hard mask compares absolute values, because squares of small floats underflow. On a CPU the passes work on
    pieces that stay in the cache.
    """

    def mask(self, weight: Tensor, threshold: Tensor) -> Tensor:
        """The hard mask, boolean, of the shape of ``weight``."""
        return weight.abs() >= threshold.abs()

    def apply(self, weight: Tensor, threshold: Tensor, units: Units | None = None) -> Tensor:
        if weight.device.type != "cpu":
            return torch.where(self.mask(weight, threshold), weight, 0)
        # One pass on a CPU, where reading the threshold costs nothing. hardshrink keeps the weights above its bound.
        bound = torch.nextafter(threshold.detach().abs(), torch.zeros_like(threshold))
        return F.hardshrink(weight, bound.item())

    def count(self, weight: Tensor, threshold: Tensor, units: Units | None = None) -> Tensor:
        if weight.device.type != "cpu":
            return self.mask(weight, threshold).sum()
        bound, count = threshold.abs(), torch.zeros((), dtype=torch.float64)
        for (w,) in _pieces(weight):
            size = w.abs()
            count += torch.ge(size, bound, out=size).sum(dtype=torch.float32)  # exact: it sums ones and zeros
        return count.long()

    def masked_backward(
        self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float, units: Units | None = None
    ) -> Gradients:
        shift, total = -threshold.square() / tau, torch.zeros_like(threshold)
        for g, w in _pieces(grad, weight):
            mask = _soft_mask(w, shift, tau)
            slope = torch.ops.aten.sigmoid_backward(w, mask)  # W M (1 - M)
            total += g.dot(slope)
            g *= mask.addcmul_(slope, w, value=2 / tau)
        return grad, total * threshold * (-2 / tau), None

    def count_backward(
        self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float, units: Units | None = None
    ) -> Gradients:
        shift, scale = -threshold.square() / tau, grad * (2 / tau)
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        total = torch.zeros_like(threshold)
        for g, w in _pieces(grad_weight, weight):
            mask = _soft_mask(w, shift, tau)
            slope = mask.addcmul_(mask, mask, value=-1).mul_(scale)  # of the count: grad * 2 / tau * M (1 - M)
            total += slope.sum()
            torch.mul(w, slope, out=g)
        return grad_weight, -threshold * total, None


MAGNITUDE = Magnitude()


class Slices(Score):
    """Units that are slices of a weight along one of its axes, and of other weights too.

    Args:
        axis: 0 for outputs (rows of a linear layer, filters of a convolution), 1 for inputs.
        size: width of a slice, in channels.
    """

    def __init__(self, axis: int = 0, size: int = 1):
        self.axis, self.size = axis, size

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Give each weight the value of its unit: (units) -> broadcastable to the shape of ``weight``."""
        shape = [1] * weight.dim()
        shape[self.axis] = -1
        return values.repeat_interleave(self.size).view(shape)

    def gather(self, values: Tensor) -> Tensor:
        """The sum over each unit: the shape of the weight -> (units)."""
        others = [axis for axis in range(values.dim()) if axis != self.axis]
        return values.sum(others).view(-1, self.size).sum(1)

    def apply(self, weight: Tensor, threshold: Tensor, units: Units | None = None) -> Tensor:
        return torch.where(self.spread(_given(units).kept, weight), weight, 0)

    def count(self, weight: Tensor | None, threshold: Tensor, units: Units | None = None) -> Tensor:
        return _given(units).kept.sum()

    def masked_backward(
        self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float, units: Units | None = None
    ) -> Gradients:
        mask = self._soft(units, threshold, tau)
        slope = self.gather(grad * weight) * mask * (1 - mask) / tau
        return grad.mul_(self.spread(mask, weight)), -2 * threshold * slope.sum(), slope

    def count_backward(
        self, grad: Tensor, weight: Tensor | None, threshold: Tensor, tau: float, units: Units | None = None
    ) -> Gradients:
        mask = self._soft(units, threshold, tau)
        slope = grad * mask * (1 - mask) / tau
        return None, -2 * threshold * slope.sum(), slope

    @staticmethod
    def _soft(units: Units | None, threshold: Tensor, tau: float) -> Tensor:
        return ((_given(units).scores - threshold.square()) / tau).sigmoid()


def _given(units: Units | None) -> Units:
    assert units is not None, "slices are units of several weights, which must be given"
    return units


def _soft_mask(weight: Tensor, shift: Tensor, tau: float) -> Tensor:
    """``sigmoid((W^2 - t^2) / tau)``, of the shape of ``weight``; ``shift`` is ``-t^2 / tau``."""
    return torch.addcmul(shift, weight, weight, value=1 / tau).sigmoid_()


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, flattened and cut alike. On a CPU a piece stays in the cache from one operation to the next."""
    size = PIECE if tensors[0].device.type == "cpu" else tensors[0].numel()
    return zip(*(tensor.reshape(-1).split(size) for tensor in tensors))
