"""One-shot magnitude pruning before the fine-tuning: the same sparsity in every layer, or one for each.

Both are baselines of arXiv 2505.22608 (section 4). What is pruned stays pruned: a weight that is exactly 0 gets no
gradient, so no optimizer moves it. There is no mask to keep, to save or to resume.
"""

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor, nn

from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.settings import MagnitudeSettings, MethodSettings, shown
from espnet_pinch.files import read_json

# How far the overall sparsity of the given layer sparsities may be from the target.
TOLERANCE = 0.001


class _OneShot(PruningMethod):
    settings: MethodSettings

    def __init__(self):
        super().__init__()
        self.linears: dict[str, nn.Linear] = {}  # not submodules: the model holds them

    def wanted(self, names: list[str]) -> Mapping[str, float]:
        """``{layer: sparsity}`` for the layers ``names``."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        """Prune the smallest weights of every matching layer and hold them at zero.

        Raises:
            ValueError: no layer matches, or the layers' sparsities do not fit them.
        """
        self.linears = find_linears(model, self.settings.layers)
        wanted = self.wanted(list(self.linears))
        for name, linear in self.linears.items():
            prune_smallest(linear.weight, wanted[name])
            linear.weight.register_hook(lambda grad, weight=linear.weight: grad.masked_fill(weight == 0, 0))

    def _pruned(self) -> dict[str, int]:
        return {name: int((linear.weight == 0).sum()) for name, linear in self.linears.items()}

    def sparsity(self) -> float:
        """Overall sparsity: pruned weights over gated weights."""
        return sum(self._pruned().values()) / sum(linear.weight.numel() for linear in self.linears.values())

    def on_target(self) -> bool:
        return self.sparsity() >= self.settings.target_sparsity - TOLERANCE

    def scalars(self) -> dict[str, float]:
        return {"sparsity": self.sparsity()}

    def layer_sparsity(self) -> dict[str, float]:
        return {name: pruned / self.linears[name].weight.numel() for name, pruned in self._pruned().items()}


class UniformPruning(_OneShot):
    """UMP: in every layer the same proportion of its smallest weights.

    Args:
        settings: keyword arguments of ``MethodSettings``.
    """

    def __init__(self, **settings):
        super().__init__()
        self.settings = MethodSettings(**settings)

    def wanted(self, names: list[str]) -> Mapping[str, float]:
        return dict.fromkeys(names, self.settings.target_sparsity)


class MixedSparsity(_OneShot):
    """Mixed-sparsity: in every layer the proportion that a finished one-pass run has found for it.

    Args:
        settings: keyword arguments of ``MagnitudeSettings``.

    Raises:
        FileNotFoundError, ValueError: as ``read_layer_sparsities``.
    """

    def __init__(self, **settings):
        super().__init__()
        self.settings = MagnitudeSettings(**settings)
        self.layer_sparsities = read_layer_sparsities(self.settings.layer_sparsities)

    def wanted(self, names: list[str]) -> Mapping[str, float]:
        if set(names) != set(self.layer_sparsities):
            differing = sorted(set(names) ^ set(self.layer_sparsities))
            raise ValueError(f"mixed_sparsity: layer_sparsities are of another model; {differing[0]} is in one only")
        weights = {name: self.linears[name].weight.numel() for name in names}
        overall = sum(weights[name] * self.layer_sparsities[name] for name in names) / sum(weights.values())
        if abs(overall - self.settings.target_sparsity) > TOLERANCE:
            raise ValueError(
                f"mixed_sparsity: layer_sparsities come to {overall:.4f} over all layers, "
                f"and target_sparsity is {self.settings.target_sparsity}"
            )
        return self.layer_sparsities


def read_layer_sparsities(source: Mapping[str, float] | str | None) -> dict[str, float]:
    """``{layer: sparsity}``, from a mapping of that kind, or from a run's parameters.json or a folder that holds it.

    Raises:
        FileNotFoundError: the run is not there, or not finished.
        ValueError: none given, or no such file's content.
    """
    if source is None:
        raise ValueError(
            "mixed_sparsity takes its layers' sparsities from a finished pinch run at the same target: "
            "give its folder as mixed_sparsity.layer_sparsities"
        )
    if isinstance(source, Mapping):
        for name, value in source.items():
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise ValueError(f"mixed_sparsity: the sparsity of {name} must be in [0, 1], not {shown(value)}")
        return dict(source)
    if not isinstance(source, str) or "\0" in source:
        raise ValueError(f"mixed_sparsity: layer_sparsities must be a folder or a mapping, not {shown(source)}")
    path = Path(source)
    if path.suffix != ".json":
        path = path / "folded" / "parameters.json"
    if not path.is_file():
        raise FileNotFoundError(f"mixed_sparsity: {path} does not exist; finish the pinch run of that target first")
    try:
        layers = read_json(path)["layers"]
        return read_layer_sparsities({name: counts["pruned"] / counts["weights"] for name, counts in layers.items()})
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
        raise ValueError(f"mixed_sparsity: {path} is not the parameters.json of a folded run") from None


@torch.no_grad()
def prune_smallest(weight: Tensor, sparsity: float) -> None:
    """Set the ``ceil(sparsity * n)`` weights of smallest magnitude to 0.

    The product is taken a little smaller before it is rounded up: 0.7 * 10 is not 7 in floating point.
    """
    count = math.ceil(sparsity * weight.numel() - 1e-6)
    smallest = weight.abs().flatten().argsort(stable=True)[:count]
    weight.view(-1)[smallest] = 0
