"""One-shot magnitude pruning before the fine-tuning.

Pruned weights stay pruned: a hook sets the gradient of every weight that is exactly 0 to 0, so no optimizer moves it.
There is no mask to store, save or resume.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from espnet_pinch.core.attach import find_linears
from espnet_pinch.core.method import PruningMethod

# How far the overall sparsity of the layers may be from the target.
TOLERANCE = 0.001


class OneShot(PruningMethod):
    """Prunes the smallest weights of every layer once; a subclass gives each layer's sparsity."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.linears: dict[str, nn.Linear] = {}  # not submodules: the model holds them

    def wanted(self, names: list[str]) -> Mapping[str, float]:
        """``{layer: sparsity}`` for the layers ``names``."""
        raise NotImplementedError

    def put_gates(self, model: nn.Module) -> None:
        """Prune the smallest weights of every matching layer and hold them at zero.

        Raises:
            UserError: no layer matches, or the given sparsities do not fit the layers.
        """
        self.linears = find_linears(model, self.settings.layers)
        wanted = self.wanted(list(self.linears))
        for name, linear in self.linears.items():
            prune_smallest(linear.weight, wanted[name])
            linear.weight.register_hook(lambda grad, weight=linear.weight: grad.masked_fill(weight == 0, 0))

    def layer_counts(self) -> dict[str, tuple[float, int]]:
        return {name: (int((m.weight == 0).sum()), m.weight.numel()) for name, m in self.linears.items()}

    def on_target(self) -> bool:
        return self.sparsity() >= self.settings.target - TOLERANCE

    def scalars(self) -> dict[str, float]:
        return {"sparsity": self.sparsity()}


@torch.no_grad()
def prune_smallest(weight: Tensor, sparsity: float) -> None:
    """Set the ``ceil(sparsity * n)`` weights of smallest magnitude to 0.

    The product is made a little smaller before it is rounded up: in floating point, 0.07 * 100 is more than 7.
    """
    count = math.ceil(sparsity * weight.numel() - 1e-6)
    smallest = weight.abs().flatten().argsort(stable=True)[:count]
    weight.view(-1)[smallest] = 0
