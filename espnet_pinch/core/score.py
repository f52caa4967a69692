"""The score that a gate compares with its threshold, and the gradients through that comparison.

A gate keeps or prunes *units* of a weight matrix. A unit has one score and is kept if ``score >= t^2``. In the paper a
unit is a single weight with the score ``W^2`` (arXiv 2505.22608, section 2). With the soft mask
``M = sigmoid((score - t^2) / tau)`` in place of the hard one, the masked weight ``W * M`` has the gradients

    d / dW = g M + (gradient of the score) * S    S = (sum over the unit of g W) * M (1 - M) / tau
    d / dt = - 2 t * sum over the units of S

for an incoming gradient ``g``. ``Score`` computes them for any score from four small functions. ``Magnitude`` computes
the same in fewer passes over the weight.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

PIECE = 1 << 17  # elements; a few pieces together fit in the L2 cache


class Score:
    """A score for each unit of a weight. For a new kind of unit, write a subclass with the first four functions."""

    def of(self, weight: Tensor) -> Tensor:
        """The scores, (units), at least 0 and on the scale of a squared weight."""
        raise NotImplementedError

    def pull_back(self, grad_score: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the scores carried back to the weight: (units) -> shape of ``weight``."""
        raise NotImplementedError

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        """Give each weight the value of its unit: (units) -> broadcastable to the shape of ``weight``."""
        raise NotImplementedError

    def gather(self, values: Tensor) -> Tensor:
        """The sum over each unit's weights: shape of the weight -> (units)."""
        raise NotImplementedError

    def mask(self, weight: Tensor, threshold: Tensor) -> Tensor:
        """The hard mask, boolean, of the shape of ``weight``."""
        return self.spread(self.of(weight) >= threshold.square(), weight).expand_as(weight)

    def apply(self, weight: Tensor, threshold: Tensor) -> Tensor:
        """``W * M_hard``, of the shape of ``weight``."""
        return torch.where(self.mask(weight, threshold), weight, 0)

    def count(self, weight: Tensor, threshold: Tensor) -> Tensor:
        """Number of kept weights, a scalar of int64."""
        return self.mask(weight, threshold).sum()

    def masked_backward(self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Gradients of weight and threshold for ``grad``, the gradient of ``apply``'s result; may overwrite it."""
        mask = self._soft(weight, threshold, tau)  # (units)
        slope = self.gather(grad * weight) * mask * (1 - mask) / tau
        grad_weight = grad * self.spread(mask, weight) + self.pull_back(slope, weight)
        return grad_weight, -2 * threshold * slope.sum()

    def count_backward(self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Gradients of weight and threshold for ``grad``, the gradient of the number of kept weights, a scalar."""
        mask = self._soft(weight, threshold, tau)
        slope = grad * self.gather(torch.ones_like(weight)) * mask * (1 - mask) / tau
        return self.pull_back(slope, weight), -2 * threshold * slope.sum()

    def _soft(self, weight: Tensor, threshold: Tensor, tau: float) -> Tensor:
        return ((self.of(weight) - threshold.square()) / tau).sigmoid()


class Magnitude(Score):
    """The paper's score: every weight is a unit with the score ``W^2``.

    The hard mask compares absolute values, because squares of small floats underflow. On a CPU the passes work on
    pieces that stay in the cache.
    """

    def of(self, weight: Tensor) -> Tensor:
        return weight.square()

    def pull_back(self, grad_score: Tensor, weight: Tensor) -> Tensor:
        return 2 * weight * grad_score

    def spread(self, values: Tensor, weight: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> Tensor:
        return values

    def mask(self, weight: Tensor, threshold: Tensor) -> Tensor:
        return weight.abs() >= threshold.abs()

    def apply(self, weight: Tensor, threshold: Tensor) -> Tensor:
        if weight.device.type != "cpu":
            return super().apply(weight, threshold)
        # One pass on a CPU, where reading the threshold costs nothing. hardshrink keeps the weights above its bound.
        bound = torch.nextafter(threshold.detach().abs(), torch.zeros_like(threshold))
        return F.hardshrink(weight, bound.item())

    def count(self, weight: Tensor, threshold: Tensor) -> Tensor:
        if weight.device.type != "cpu":
            return super().count(weight, threshold)
        bound, count = threshold.abs(), torch.zeros((), dtype=torch.float64)
        for (w,) in _pieces(weight):
            size = w.abs()
            count += torch.ge(size, bound, out=size).sum(dtype=torch.float32)  # exact: it sums ones and zeros
        return count.long()

    def masked_backward(self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        shift, total = -threshold.square() / tau, torch.zeros_like(threshold)
        for g, w in _pieces(grad, weight):
            mask = _soft_mask(w, shift, tau)
            slope = torch.ops.aten.sigmoid_backward(w, mask)  # W M (1 - M)
            total += g.dot(slope)
            g *= mask.addcmul_(slope, w, value=2 / tau)
        return grad, total * threshold * (-2 / tau)

    def count_backward(self, grad: Tensor, weight: Tensor, threshold: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        shift, scale = -threshold.square() / tau, grad * (2 / tau)
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        total = torch.zeros_like(threshold)
        for g, w in _pieces(grad_weight, weight):
            mask = _soft_mask(w, shift, tau)
            slope = mask.addcmul_(mask, mask, value=-1).mul_(scale)  # of the count: grad * 2 / tau * M (1 - M)
            total += slope.sum()
            torch.mul(w, slope, out=g)
        return grad_weight, -threshold * total


MAGNITUDE = Magnitude()


def _soft_mask(weight: Tensor, shift: Tensor, tau: float) -> Tensor:
    """``sigmoid((W^2 - t^2) / tau)``, of the shape of ``weight``; ``shift`` is ``-t^2 / tau``."""
    return torch.addcmul(shift, weight, weight, value=1 / tau).sigmoid_()


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, flattened and cut alike. On a CPU a piece stays in the cache from one operation to the next."""
    size = PIECE if tensors[0].device.type == "cpu" else tensors[0].numel()
    return zip(*(tensor.reshape(-1).split(size) for tensor in tensors))
