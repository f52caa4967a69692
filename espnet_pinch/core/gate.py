"""The self-pinching gate: one learnable threshold for one linear layer (arXiv 2505.22608, section 2).

The forward pass uses the hard mask of the layer's score (``espnet_pinch.core.score``): a weight is kept where
``W^2 >= t^2``. The backward pass is straight-through: it differentiates ``W * M`` with the soft mask
``M = sigmoid((W^2 - t^2) / tau)`` in place of the hard one. So gradients reach both the weight and the threshold ``t``:

    d(W * M) / dW = M + 2 W^2 / tau * M (1 - M)
    d(W * M) / dt =   - 2 t W / tau * M (1 - M)

Between the two passes a gate stores only its weight and threshold. It computes each mask again when it is needed, so a
gate needs no more activation memory than the linear layer that it replaces. It takes a few more passes over the weight;
their time does not grow with the batch.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from espnet_pinch.core.score import MAGNITUDE, Score, Units
from espnet_pinch.core.thresholds import WithThreshold, new_threshold


def _units(scores: Tensor | None, kept: Tensor | None) -> Units | None:
    """What autograd keeps as two tensors."""
    return None if scores is None or kept is None else Units(scores, kept)


class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, threshold, tau, score, scores, kept):
        ctx.save_for_backward(weight, threshold, scores, kept)
        ctx.tau, ctx.score = tau, score
        return score.apply(weight, threshold, _units(scores, kept))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_masked):
        weight, threshold, *units = ctx.saved_tensors
        grad_masked = grad_masked.clone(memory_format=torch.contiguous_format)
        grads = ctx.score.masked_backward(grad_masked, weight, threshold, ctx.tau, _units(*units))
        return *grads[:2], None, None, grads[2], None


class _MaskedLinear(torch.autograd.Function):
    """``F.linear(x, W * M_hard, b)`` that does not keep the masked weight for its backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, threshold, tau, score):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, threshold)
        ctx.tau, ctx.score = tau, score
        ctx.has_bias = bias is not None
        masked = score.apply(weight, threshold).to(dtype)
        return F.linear(x, masked, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x, weight, threshold = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = grad_threshold = None
        rows = grad_output.flatten(0, -2)  # (N, out)
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ ctx.score.apply(weight, threshold).to(grad_output.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            grad_masked = (rows.mT @ x.flatten(0, -2)).to(weight.dtype)  # (out, in)
            grad_weight, grad_threshold, _ = ctx.score.masked_backward(grad_masked, weight, threshold, ctx.tau)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, grad_threshold, None, None


class _KeptUnits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, threshold, tau, score, scores, kept):
        ctx.save_for_backward(weight, threshold, scores, kept)
        ctx.tau, ctx.score = tau, score
        return score.count(weight, threshold, _units(scores, kept)).to(threshold.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_count):
        weight, threshold, *units = ctx.saved_tensors
        grads = ctx.score.count_backward(grad_count, weight, threshold, ctx.tau, _units(*units))
        return *grads[:2], None, None, grads[2], None


def masked_weight(
    weight: Tensor, threshold: Tensor, tau: float, score: Score = MAGNITUDE, units: Units | None = None
) -> Tensor:
    """``W * M_hard`` with the straight-through backward pass.

    Args:
        weight: (out, in), or any shape.
        threshold: scalar.
        tau: temperature of the soft mask, > 0.
        score: what the units of the weight are.
        units: of several layers, where a weight is not a unit of its own.
    """
    return _MaskedWeight.apply(weight, threshold, tau, score, *(units or (None, None)))


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, threshold: Tensor, tau: float) -> Tensor:
    """``F.linear(x, W * M_hard, b)`` with the straight-through backward pass; follows autocast.

    Args:
        x: (..., in)
        weight: (out, in)
        bias: (out,) or None
        threshold: scalar.
        tau: temperature of the soft mask, > 0.

    Returns: (..., out)
    """
    return _MaskedLinear.apply(x, weight, bias, threshold, tau, MAGNITUDE)


def kept_units(
    weight: Tensor | None, threshold: Tensor, tau: float, score: Score = MAGNITUDE, units: Units | None = None
) -> Tensor:
    """``|M|_0``: the number of kept units as a scalar. Its gradient is the gradient of the sum of the soft mask.

    Args:
        weight, threshold, tau, score, units: as for ``masked_weight``; ``weight`` is not needed with ``units``.
    """
    return _KeptUnits.apply(weight, threshold, tau, score, *(units or (None, None)))


class GatedLinear(WithThreshold, nn.Module):
    """A linear layer with a self-pinching gate. It replaces an ``nn.Linear`` and shares its parameters.

    ``weight_orig`` holds the unpruned weight (named as in ``torch.nn.utils.prune``), and ``threshold`` the gate's
    scalar. ``weight`` is the masked weight, for code that reads it instead of calling the layer, such as WavLM's
    attention.

    Args:
        linear: the layer to replace.
        threshold: initial value of the threshold.
        tau: temperature of the soft mask, > 0.
        targets: number of thresholds.

    >>> layer = GatedLinear(nn.Linear(4, 3), threshold=0.1)
    >>> layer(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 5, 3])
    """

    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear, threshold: float = 1e-5, tau: float = 0.5, targets: int = 1):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_orig = linear.weight  # (out, in)
        self.register_parameter("bias", linear.bias)  # (out,) or None
        self.threshold = new_threshold(linear.weight, threshold, targets)
        self.tau = tau

    @property
    def weight(self) -> Tensor:
        return masked_weight(self.weight_orig, self.current, self.tau)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return masked_linear(x, self.weight_orig, self.bias, self.current, self.tau)

    def kept(self) -> Tensor:
        """Number of kept weights, differentiable (``kept_units``)."""
        return kept_units(self.weight_orig, self.current, self.tau)

    @torch.no_grad()
    def count_kept(self, factor: float = 1.0) -> Tensor:
        """Number of weights that are kept if the threshold is multiplied by ``factor``, a scalar of int64."""
        return MAGNITUDE.count(self.weight_orig, self.times(factor))

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """An ``nn.Linear`` with zeros where the gate prunes. It computes the same without a gate."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = self.weight_orig
        linear.weight.copy_(MAGNITUDE.apply(self.weight_orig, self.current))
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
