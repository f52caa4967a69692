"""Quantisation in the same pass: the forward pass rounds what the gates keep, the backward pass ignores the rounding.

Each quantised layer computes with ``Q(W * M)``: first the mask of its gate, then the nearest values of its grid
(``espnet_pinch.core.grids``). The gradient goes through the rounding unchanged (straight-through), and then through the
gate as ever. So any method of pruning can be quantised, and a model without gates too. No other module knows of it.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from espnet_pinch.core.attach import replace_module
from espnet_pinch.core.grids import TERNARY, Codes, Grid
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.settings import check_number, shown
from espnet_pinch.errors import UserError

WIDTHS = (8, 4, 3, 2, TERNARY)
MIXED = "mixed"
OTHERS = (8, 16, 32)
REFIT = 20  # optimizer steps after which the levels are fitted again


@dataclasses.dataclass(frozen=True)
class QuantizeSettings:
    """A YAML's ``quantize:`` block.

    Attributes:
        bits: of a kept weight of the gated layers: 8, 4, 3, 2, "ternary" (its sign, and a scale of the channel), or
            "mixed": each layer's own, learnt in the same run.
        average_bits: with "mixed", of the kept weights of all gated layers: over 1, at most 8.
        others: bits of the other weights, which are rounded after the training: 8, 16 (float16) or 32 (not at all).
            Biases, norms and other vectors stay as they are.
        bits_weight: with "mixed", the weight in the loss of each bit of the average, until the average is met.
        bits_lr: with "mixed", the learning rate of what chooses the bits; None means that of the model's weights.
        reach_by: with "mixed", the fraction of the run by which the bits are chosen; over 0, under 1.
    """

    bits: int | str = 8
    average_bits: float | None = None
    others: int = 8
    bits_weight: float = 1.0
    bits_lr: float | None = None
    reach_by: float = 0.5

    def __post_init__(self):
        if (self.bits == MIXED) != (self.average_bits is not None):
            raise UserError("quantize.average_bits goes with bits: mixed, which needs it")
        if self.bits not in [*WIDTHS, MIXED] or type(self.bits) not in (int, str):
            raise UserError(
                f"quantize.bits must be one of {', '.join(map(str, WIDTHS))}, {MIXED}, not {shown(self.bits)}"
            )
        if self.others not in [*OTHERS] or type(self.others) is not int:
            raise UserError(f"quantize.others must be one of {', '.join(map(str, OTHERS))}, not {shown(self.others)}")
        if self.average_bits is not None and not 1 < check_number("quantize.average_bits", self.average_bits) <= 8:
            raise UserError(f"quantize.average_bits must be over 1 and at most 8, not {shown(self.average_bits)}")
        check_number("quantize.bits_weight", self.bits_weight, above=0.0)
        if self.bits_lr is not None:
            check_number("quantize.bits_lr", self.bits_lr, above=0.0)
        if check_number("quantize.reach_by", self.reach_by, above=0.0) >= 1:
            raise UserError(f"quantize.reach_by must be under 1, not {shown(self.reach_by)}")

    @property
    def chosen(self) -> dict[str, Any]:
        """The bits, and what differs from the defaults."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in values.items() if name == "bits" or value != fields[name]}

    @property
    def name(self) -> str:
        """Of the bits, for a folder: "4_bit", "ternary", "mixed_3.5_bit"."""
        if self.bits == MIXED:
            return f"{MIXED}_{self.average_bits}_bit"
        return self.bits if self.bits == TERNARY else f"{self.bits}_bit"


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, grid):
        return grid.round(weight).weight()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return grad, None


class _RoundedLinear(torch.autograd.Function):
    """``F.linear(x, Q(W), b)`` that keeps the codes for its backward pass, in 8 bits, and not the weight."""

    @staticmethod
    def forward(ctx, x, weight, bias, grid):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x, codes = x.to(dtype), grid.round(weight)
        ctx.save_for_backward(x, codes.codes.to(torch.int8), codes.scales)
        ctx.has_bias, ctx.dtype = bias is not None, weight.dtype
        return F.linear(x, codes.weight().to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        x, codes, scales = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        rows = grad_output.flatten(0, -2)  # (N, out)
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ Codes(codes.to(scales.dtype), scales).weight().to(grad_output.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = (rows.mT @ x.flatten(0, -2)).to(ctx.dtype)  # (out, in)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0).to(ctx.dtype)
        return grad_x, grad_weight, grad_bias, None


class QuantizedLayer(nn.Module):
    """A linear layer, gated or plain, that computes with rounded weights.

    ``weight`` is the rounded weight, for code that reads it instead of calling the layer, such as WavLM's attention.

    Each of several targets keeps other weights, so it has grids of its own.

    Args:
        layer: has ``weight``, (out, in), and ``bias``; both may be computed from other parameters.
        widths: of its grid, 8, 4, 3, 2 or "ternary"; or of several to choose from.
        targets: their number.
    """

    def __init__(self, layer: Any, *widths: int | str, targets: int = 1):
        super().__init__()
        self.layer, self.widths = layer, widths
        like = next(layer.parameters())
        self.grids = nn.ModuleList([Grid(width).to(like.device) for _ in range(targets) for width in widths])
        self.in_use = 0  # place of the target in use

    @property
    def candidates(self) -> list[Grid]:
        """The grids of the target in use, one for each width."""
        first = self.in_use * len(self.widths)
        return cast(list[Grid], list(self.grids[first : first + len(self.widths)]))

    @property
    def grid(self) -> Grid:
        """The grid that the layer is to have."""
        return self.candidates[0]

    @property
    def weight(self) -> Tensor:
        return _Rounded.apply(self.layer.weight, self.grid)

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return _RoundedLinear.apply(x, self.layer.weight, self.bias, self.grid)

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the levels to the weights of the moment."""
        weight = self.layer.weight
        for grid in self.candidates:
            grid.fit(weight)


class Quantization:
    """The quantisation of a model that a pruning method is attached to, or of one that method "dense" is.

    A training loop calls ``attach`` after the method's and makes its optimizer from ``parameter_groups``. It adds
    ``penalty()`` to the loss. In the place of the method's ``fold`` it calls ``fold``.

    Args:
        settings: keyword arguments of ``QuantizeSettings``.

    >>> from espnet_pinch.core.methods.dense import Dense
    >>> model, method, quantization = nn.Sequential(nn.Linear(8, 8)), Dense(), Quantization(bits=2)
    >>> method.attach(model, total_steps=1)
    >>> quantization.attach(model, ["0"], method)
    >>> scales = quantization.fold()
    >>> len(model[0].weight.div(scales["0.weight"][:, None]).round().abs().unique())  # two levels
    2
    """

    def __init__(self, **settings):
        self.settings = QuantizeSettings(**settings)
        self.layers: dict[str, QuantizedLayer] = {}
        self._step = -1  # the last that was begun

    def attach(self, model: nn.Module, names: Iterable[str], method: PruningMethod) -> None:
        """Make layers of ``model`` compute with rounded weights.

        Args:
            model: that ``method`` is attached to.
            names: of its linear layers.
            method: tells the step, and how far the run is.
        """
        self.model, self.method = model, method
        for name in names:
            self.layers[name] = self.quantized(model.get_submodule(name))
            replace_module(model, name, self.layers[name])
        self._hook = model.register_forward_pre_hook(self._before_forward)

    def quantized(self, layer: nn.Module) -> QuantizedLayer:
        """A layer in the place of ``layer``, which has its gate already."""
        return QuantizedLayer(layer, self.settings.bits, targets=len(self.method.targets))

    def _before_forward(self, model: nn.Module, _inputs) -> None:
        if model.training and self._step != self.method.step:
            self._step = self.method.step
            self.begin_step()
        self._follow()

    def _follow(self) -> None:
        """Take the grids of the target that the method is at."""
        place = self.method.targets.index(self.method.target_in_use)
        for layer in self.layers.values():
            layer.in_use = place

    def each_target(self) -> Iterator[None]:
        """Take the method's targets, one after the other, and at the end the one in use again."""
        in_use = self.method.target_in_use
        for target in self.method.targets:
            self.method.use(target)
            self._follow()
            yield
        self.method.use(in_use)
        self._follow()

    def begin_step(self) -> None:
        """Called once in each optimizer step, before its first forward pass."""
        if self.method.step % REFIT == 0:  # of the run, so that a resumed one does the same
            for _ in self.each_target():
                self.fit()

    def fit(self) -> None:
        """Fit the levels of all layers, for the target in use."""
        self._follow()
        for layer in self.layers.values():
            layer.fit()

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that choose the bits, if there are any."""
        return []

    def parameter_groups(self, groups: list[dict]) -> list[dict]:
        """The groups of the pruning method, with the new parameters in one of their own."""
        new = self.new_parameters()
        if not new:
            return groups
        own, lr = {id(p) for p in new}, self.settings.bits_lr or groups[0]["lr"]
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        return [*groups, {"params": new, "lr": lr, "weight_decay": 0.0}]

    def penalty(self) -> Tensor | float:
        """A term of the loss, a scalar."""
        return 0.0

    def scalars(self) -> dict[str, float]:
        """Figures for the training log."""
        return {}

    def settled(self) -> bool:
        """Whether the bits of every layer are chosen."""
        return True

    def land(self) -> None:
        """Choose the bits of a trained model, if they are to be chosen: averaging checkpoints may have moved them."""

    @torch.no_grad()
    def fold(self) -> dict[str, Tensor]:
        """End the method and the quantisation: plain layers, whose weights have the values that were computed with.

        Returns: as ``round``.
        """
        self.unwrap()
        self.method.fold()
        return self.round()

    def unwrap(self) -> None:
        """Fit the levels a last time, and put the gated or plain layers in the place of the quantised ones."""
        self.fit()
        self._hook.remove()
        for name, layer in self.layers.items():
            replace_module(self.model, name, layer.layer.train(layer.training))

    @torch.no_grad()
    def round(self) -> dict[str, Tensor]:
        """Round the weights of the plain layers.

        Returns: ``{weight: its scales, (out,)}``.
        """
        scales = {}
        for name, layer in self.layers.items():
            scales[f"{name}.weight"] = round_(cast(nn.Linear, self.model.get_submodule(name)).weight, layer.grid)
        return scales


@torch.no_grad()
def round_(weight: Tensor, grid: Grid) -> Tensor:
    """Round a weight, (out, ...), in place. Returns the scales, (out,)."""
    codes = grid.round(weight)
    weight.copy_(codes.weight())
    return codes.scales


@torch.no_grad()
def round_others(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Round the weights that no gate has, in place: those with several rows. Vectors stay as they are.

    Args:
        weights: ``{name: weight}``.
        bits: one of ``OTHERS``.

    Returns: with 8 bits, ``{name: scales of its rows}``; otherwise nothing.

    Raises:
        UserError: a weight is too large for 16 bits.
    """
    scales = {}
    for name, weight in weights.items():
        if weight.dim() < 2 or len(weight) < 2 or not weight.is_floating_point():
            continue
        if bits == 8:
            scales[name] = round_(weight, Grid(8).to(weight.device))
        elif bits == 16:
            half = weight.half()
            if not half.isfinite().all():
                raise UserError(f"{name} has a weight that is too large for others: 16 (float16)")
            weight.copy_(half)
    return scales
