"""No pruning: training on the schedule of the pruning methods, and the form of folded models."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from espnet_pinch.core.channels import make_room
from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.registry import register
from espnet_pinch.core.settings import MethodSettings


@dataclasses.dataclass(frozen=True)
class DenseSettings(MethodSettings):
    """Settings of a model without gates.

    Attributes:
        channels: ``{layer: channels left}`` of a model folded to smaller matrices.
    """

    channels: Mapping[str, int] = dataclasses.field(default_factory=dict)


@register("dense", title="dense, same schedule", label="dense", colour="black", marker="D")
class Dense(PruningMethod):
    """Prunes nothing. Gives a model the smaller matrices of a folded one, so that it can load its weights.

    Args:
        settings: keyword arguments of ``DenseSettings``.
    """

    settings_class = DenseSettings
    settings: DenseSettings

    def put_gates(self, model: nn.Module) -> None:
        make_room(model, self.settings.channels, self.ties)

    def _counts(self, optimizer: torch.optim.Optimizer) -> bool:
        return self._begun == self.step  # the optimizer may train no parameter of the model
