"""Mixed precision: the bits of every layer are learnt in the same run (after arXiv 2501.03643, whose details are ours).

Every layer has a weight for each candidate width. In training it computes with a mixture of its candidates, by a
Gumbel-softmax over these weights, whose temperature falls along a cosine. The loss gets the expected average of bits,
until it meets ``average_bits``. After the fraction ``reach_by`` of the run every layer takes its likeliest candidate,
with a charge for every bit of its kept weights. The charge is common to all layers and is found by bisection, so that
they meet the average together. The rest of the run trains the chosen widths.

The paper names a Gumbel-softmax over candidates in one stage of training. Its candidates, its penalty and how it ends
were not to be had.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from espnet_pinch.core.grids import Grid, bits_of
from espnet_pinch.core.method import cosine, generator_of_step
from espnet_pinch.core.quantize import MIXED, WIDTHS, Quantization, QuantizedLayer, QuantizeSettings
from espnet_pinch.core.search import smallest_charge
from espnet_pinch.core.settings import check_keys

TAU_START, TAU_END = 1.0, 0.1


class _Mixture(torch.autograd.Function):
    """``sum_k p_k Q_k(W)``, straight-through for the weight. The candidates are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, weight, parts, grids):
        ctx.save_for_backward(weight, parts)
        ctx.grids = grids
        return sum(part * grid.round(weight).weight() for part, grid in zip(parts, grids))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        weight, parts = ctx.saved_tensors
        of_parts = torch.stack([(grad * grid.round(weight).weight()).sum() for grid in ctx.grids])
        return grad * parts.sum(), of_parts, None


class MixedLayer(QuantizedLayer):
    """A linear layer that learns which of ``WIDTHS`` it takes.

    What the candidates are worth is common to all targets. Each target has a choice of its own.

    Args:
        layer, targets: as for ``QuantizedLayer``.
    """

    chosen: Tensor
    kept: Tensor

    def __init__(self, layer: Any, targets: int = 1):
        super().__init__(layer, *WIDTHS, targets=targets)
        like = next(layer.parameters())
        self.choice = nn.Parameter(like.new_zeros(len(WIDTHS)))
        # For each target the place of the chosen candidate, -1 during the search, and the number of kept weights, when
        # it was last counted.
        self.register_buffer("chosen", like.new_full((targets,), -1.0))
        self.register_buffer("kept", like.new_ones(targets))
        self.parts: Tensor | None = None  # (candidates,) of the mixture of the moment, in training during the search

    def __getstate__(self) -> dict:
        return {**self.__dict__, "parts": None}  # a tensor in a graph cannot be copied

    @property
    def grid(self) -> Grid:
        """The chosen candidate, or the likeliest one if none is chosen."""
        place = int(self.chosen[self.in_use])
        return self.candidates[place if place >= 0 else int(self.choice.argmax())]

    @property
    def weight(self) -> Tensor:
        if self.training and self.parts is not None:
            return _Mixture.apply(self.layer.weight, self.parts, self.candidates)
        return super().weight

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        searches = self.training and self.parts is not None
        return F.linear(x, self.weight, self.bias) if searches else super().forward(x)

    @torch.no_grad()
    def fit(self) -> None:
        super().fit()
        self.kept[self.in_use] = self.layer.weight.count_nonzero()


class MixedQuantization(Quantization):
    """As ``Quantization``, with bits that are learnt for every layer.

    The noise of a step depends only on torch's seed at construction and on the step, as in NAS-CP.

    Args:
        settings: keyword arguments of ``QuantizeSettings``, with ``bits="mixed"``.
    """

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seed = torch.initial_seed()
        self.most = cast(float, self.settings.average_bits)

    def quantized(self, layer: nn.Module) -> MixedLayer:
        return MixedLayer(layer, targets=len(self.method.targets))

    @property
    def mixed(self) -> list[MixedLayer]:
        """The layers."""
        return cast(list[MixedLayer], list(self.layers.values()))

    def new_parameters(self) -> list[nn.Parameter]:
        return [layer.choice for layer in self.mixed]

    @property
    def tau(self) -> float:
        """Temperature of the Gumbel-softmax."""
        return cosine(TAU_START, TAU_END, min(self.method.progress / self.settings.reach_by, 1.0))

    def _before_forward(self, model: nn.Module, _inputs) -> None:
        super()._before_forward(model, _inputs)
        if model.training:
            mixtures = None if self.settled() else self._mixtures()
            for i, layer in enumerate(self.mixed):
                layer.parts = None if mixtures is None else mixtures[i]

    def begin_step(self) -> None:
        super().begin_step()
        if self.method.progress >= self.settings.reach_by and not self.settled():
            for _ in self.each_target():
                self.choose()

    def _choices(self) -> Tensor:
        """What chooses the candidates, (layers, candidates)."""
        return torch.stack([layer.choice for layer in self.mixed])

    def _mixtures(self) -> Tensor:
        """The sampled parts of the candidates, (layers, candidates)."""
        if not self.method.total_steps:
            raise RuntimeError("mixed bits need the length of the run: call attach(model, total_steps)")
        choices = self._choices()
        exponential = torch.empty(choices.shape).exponential_(generator=generator_of_step(self.seed, self.method.step))
        return ((choices - exponential.log().to(choices)) / self.tau).softmax(-1)

    def _average(self, parts: Tensor) -> Tensor:
        """The average of bits that parts of candidates, (layers, candidates), come to."""
        kept = torch.stack([layer.kept[layer.in_use] for layer in self.mixed])
        return ((parts * self._bits().to(parts)).sum(-1) * kept).sum() / kept.sum().clamp(min=1)

    def _bits(self) -> Tensor:
        """Of the candidates, (candidates,)."""
        return torch.tensor([float(bits_of(width)) for width in WIDTHS])

    def penalty(self) -> Tensor | float:
        """``bits_weight`` times the expected average of bits, a scalar; 0.0 while the average is met.

        After the search it is still a function of all parameters, as DistributedDataParallel requires.
        """
        if self.settled() or self.average_bits() <= self.most:
            return 0.0 * self._choices().sum()
        return self.settings.bits_weight * self._average(self._mixtures())

    def scalars(self) -> dict[str, float]:
        return {"bits": self.average_bits()}

    @torch.no_grad()
    def average_bits(self) -> float:
        """Of the kept weights of all layers, as they were last counted; expected, while the search lasts."""
        choices = self._choices()
        if not self.settled():
            return float(self._average(choices.softmax(-1)))
        chosen = torch.stack([layer.chosen[layer.in_use] for layer in self.mixed]).long()
        return float(self._average(nn.functional.one_hot(chosen, choices.shape[1]).to(choices)))

    def settled(self) -> bool:
        return bool(torch.stack([layer.chosen for layer in self.mixed]).min() >= 0)

    @torch.no_grad()
    def choose(self) -> None:
        """End the search for the target in use, on the average: never over it, a step of one layer under it at most.

        One charge for each bit is common to all layers. It is the smallest that meets the average. The layer that it
        changes last falls only as far as it must.
        """
        bits = self._bits().double()
        kept = torch.stack([layer.layer.weight.count_nonzero() for layer in self.mixed]).double().cpu()
        share = kept / kept.sum().clamp(min=1)  # (layers,)
        liking = self._choices().double().cpu().log_softmax(-1)
        per_bit = len(share) * share[:, None] * bits

        def places(charge: float) -> list[int]:
            return (liking - charge * per_bit).argmax(-1).tolist()

        def met(places: list[int]) -> bool:
            return float((share * bits[places]).sum()) <= self.most

        high, low = smallest_charge(lambda charge: met(places(charge)))
        chosen = places(high)
        for i, most in enumerate(places(low)):
            for place in range(most, chosen[i]):  # from more bits to fewer
                if met([*chosen[:i], place, *chosen[i + 1 :]]):
                    chosen[i] = place
                    break
        for layer, place in zip(self.mixed, chosen):
            layer.chosen[layer.in_use] = float(place)
            layer.parts = None

    def land(self) -> None:
        for _ in self.each_target():
            self.fit()  # which counts the kept weights
            if not self.settled() or self.average_bits() > self.most:
                self.choose()


def build_quantization(block: Mapping | None) -> Quantization | None:
    """The quantisation of a YAML's ``quantize:`` block; None where there is none, or its ``bits`` are null.

    Raises:
        UserError: it has an unknown setting, or one out of its range.
    """
    if block is None or block == {}:
        return None
    check_keys(block, {field.name for field in dataclasses.fields(QuantizeSettings)}, "the quantize block")
    if block.get("bits", QuantizeSettings.bits) is None and block.get("average_bits") is None:
        return None
    return (MixedQuantization if block.get("bits") == MIXED else Quantization)(**block)
