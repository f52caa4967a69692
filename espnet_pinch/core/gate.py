"""The self-pinching gate: one learnable threshold for one linear layer (arXiv 2505.22608, section 2).

A weight is kept where ``W^2 >= t^2``. The forward pass uses this hard mask. The backward pass is
straight-through: it differentiates ``W * M`` with the soft mask ``M = sigmoid((W^2 - t^2) / tau)`` in the
place of the hard one, so that gradients reach the weight and the threshold ``t`` alike:

    d(W * M) / dW = M + 2 W^2 / tau * M (1 - M)
    d(W * M) / dt =   - 2 t W / tau * M (1 - M)

Nothing but the weight and the threshold is kept between the two passes: both masks are made anew where they
are needed, so a gate costs no activation memory beyond that of the linear layer it replaces. What it costs in time
does not grow with the batch: some passes over the weight.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PIECE = 1 << 17  # elements; some of them at once fit the L2 cache


def hard_mask(weight: Tensor, threshold: Tensor) -> Tensor:
    """Boolean mask of the kept weights, ``W^2 >= t^2``, same shape as ``weight``.

    Absolute values are compared: squares of small floats underflow.
    """
    return weight.abs() >= threshold.abs()


def apply_hard_mask(weight: Tensor, threshold: Tensor) -> Tensor:
    """``W * M_hard``, same shape as ``weight``."""
    if weight.device.type != "cpu":
        return torch.where(hard_mask(weight, threshold), weight, 0)
    # One pass on a CPU, where reading the threshold costs nothing. hardshrink keeps what is over its bound.
    bound = torch.nextafter(threshold.detach().abs(), torch.zeros_like(threshold))
    return F.hardshrink(weight, bound.item())


def count_kept(weight: Tensor, threshold: Tensor) -> Tensor:
    """Number of kept weights, a scalar of int64."""
    if weight.device.type != "cpu":
        return hard_mask(weight, threshold).sum()
    bound, count = threshold.abs(), torch.zeros((), dtype=torch.float64)
    for (w,) in _pieces(weight):
        size = w.abs()
        count += torch.ge(size, bound, out=size).sum(dtype=torch.float32)  # of ones and zeros, exact
    return count.long()


def soft_mask(weight: Tensor, shift: Tensor, tau: float) -> Tensor:
    """The soft mask ``M``, same shape as ``weight``; ``shift`` is ``-t^2 / tau``."""
    return torch.addcmul(shift, weight, weight, value=1 / tau).sigmoid_()


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, flat and cut alike: on a CPU into pieces that stay in its cache from one operation to the next."""
    size = PIECE if tensors[0].device.type == "cpu" else tensors[0].numel()
    return zip(*(tensor.reshape(-1).split(size) for tensor in tensors))


def _straight_through(grad_masked: Tensor, weight: Tensor, threshold: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Carry the gradient of the masked weight on to the weight, in the place of ``grad_masked``, and to the threshold.

    The threshold's is of the shape of ``threshold``.
    """
    shift, total = -threshold.square() / tau, torch.zeros_like(threshold)
    for g, w in _pieces(grad_masked, weight):
        mask = soft_mask(w, shift, tau)
        slope = torch.ops.aten.sigmoid_backward(w, mask)  # W M (1 - M)
        total += g.dot(slope)
        g *= mask.addcmul_(slope, w, value=2 / tau)
    return grad_masked, total * threshold * (-2 / tau)


class _MaskedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, threshold, tau):
        ctx.save_for_backward(weight, threshold)
        ctx.tau = tau
        return apply_hard_mask(weight, threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_masked):
        weight, threshold = ctx.saved_tensors
        grad_masked = grad_masked.clone(memory_format=torch.contiguous_format)
        return *_straight_through(grad_masked, weight, threshold, ctx.tau), None


class _MaskedLinear(torch.autograd.Function):
    """``F.linear(x, W * M_hard, b)`` that does not keep the masked weight for its backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, threshold, tau):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, threshold)
        ctx.tau = tau
        ctx.has_bias = bias is not None
        masked = apply_hard_mask(weight, threshold).to(dtype)
        return F.linear(x, masked, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x, weight, threshold = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = grad_threshold = None
        rows = grad_output.flatten(0, -2)  # (N, out)
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ apply_hard_mask(weight, threshold).to(grad_output.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            grad_masked = (rows.mT @ x.flatten(0, -2)).to(weight.dtype)  # (out, in)
            grad_weight, grad_threshold = _straight_through(grad_masked, weight, threshold, ctx.tau)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0).to(weight.dtype)
        return grad_x, grad_weight, grad_bias, grad_threshold, None


class _KeptWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, threshold, tau):
        ctx.save_for_backward(weight, threshold)
        ctx.tau = tau
        return count_kept(weight, threshold).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_count):
        weight, threshold = ctx.saved_tensors
        shift, scale = -threshold.square() / ctx.tau, grad_count * (2 / ctx.tau)
        grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        total = torch.zeros_like(threshold)
        for g, w in _pieces(grad_weight, weight):
            mask = soft_mask(w, shift, ctx.tau)
            slope = mask.addcmul_(mask, mask, value=-1).mul_(scale)  # of the count, 2 / tau * M (1 - M)
            total += slope.sum()
            torch.mul(w, slope, out=g)
        return grad_weight, -threshold * total, None


def masked_weight(weight: Tensor, threshold: Tensor, tau: float) -> Tensor:
    """``W * M_hard`` with the straight-through backward pass.

    Args:
        weight: (out, in), or any shape.
        threshold: scalar.
        tau: temperature of the soft mask, > 0.
    """
    return _MaskedWeight.apply(weight, threshold, tau)


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
    return _MaskedLinear.apply(x, weight, bias, threshold, tau)


def kept_weights(weight: Tensor, threshold: Tensor, tau: float) -> Tensor:
    """``|M|_0``: the number of kept weights as a scalar; its backward pass is the soft mask's sum's."""
    return _KeptWeights.apply(weight, threshold, tau)


class GatedLinear(nn.Module):
    """A linear layer behind a self-pinching gate; takes the place of an ``nn.Linear`` and shares its parameters.

    ``weight_orig`` holds the unpruned weight (the name is that of ``torch.nn.utils.prune``), ``threshold`` the
    gate's scalar. ``weight`` is the masked weight, for code that reads it instead of calling the layer, as
    WavLM's attention does.

    >>> layer = GatedLinear(nn.Linear(4, 3), threshold=0.1)
    >>> layer(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 5, 3])
    """

    def __init__(self, linear: nn.Linear, threshold: float = 1e-5, tau: float = 0.5):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_orig = linear.weight  # (out, in)
        self.register_parameter("bias", linear.bias)  # (out,) or None
        self.threshold = nn.Parameter(linear.weight.new_tensor(threshold))  # ()
        self.tau = tau

    @property
    def weight(self) -> Tensor:
        return masked_weight(self.weight_orig, self.threshold, self.tau)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return masked_linear(x, self.weight_orig, self.bias, self.threshold, self.tau)

    def kept(self) -> Tensor:
        """Number of kept weights, differentiable (``kept_weights``)."""
        return kept_weights(self.weight_orig, self.threshold, self.tau)

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """An ``nn.Linear`` with zeros where the gate prunes: the same function, no gate."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight = self.weight_orig
        linear.weight.copy_(apply_hard_mask(self.weight_orig, self.threshold))
        linear.bias = self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
