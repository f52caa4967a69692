"""What every pruning method offers to a training loop, and ``Dense``, which prunes nothing."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from espnet_pinch.core.channels import make_room
from espnet_pinch.core.settings import DenseSettings


class PruningMethod(nn.Module):
    """A pruning method, attached to one model.

    A training loop calls ``attach`` once and sets ``total_steps``; then it calls ``penalty()`` before every forward
    pass and adds it to the loss, and ``after_step()`` after ``optimizer.step()``, best as
    ``optimizer.register_step_post_hook``.
    ``fold`` ends it. The method's own progress travels in ``state_dict``, so a resumed run goes on where it was.
    """

    structured = False  # whether whole channels go, so that the folded matrices can be made smaller

    def __init__(self):
        super().__init__()
        self.total_steps: int | None = None  # optimizer steps of the whole run
        self.step = 0  # optimizer steps done

    def attach(self, model: nn.Module) -> None:
        """Put the method's gates into ``model``."""

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that the method trains besides the model's own."""
        return []

    @property
    def new_lr(self) -> float | None:
        """Learning rate of the new parameters; None where it is that of the weights."""
        return None

    def penalty(self) -> Tensor | float:
        """The term that the method adds to the loss, a scalar. Called before every forward pass of the training."""
        return 0.0

    def after_step(self, *_) -> None:
        """Count one optimizer step. Takes and ignores what a step hook is called with."""
        self.step += 1

    @property
    def progress(self) -> float:
        """Part of the run that is done, 0 to 1; 0 while the length of the run is not known."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0

    def on_target(self) -> bool:
        """Whether the model is now as sparse as it should end up."""
        return True

    def scalars(self) -> dict[str, float]:
        """Figures worth a line in the training log."""
        return {}

    def layer_sparsity(self) -> dict[str, float]:
        """``{layer name: fraction of its weights that is pruned}``."""
        return {}

    def land(self) -> None:
        """Put the model on its target, where the method promises that and the mean of checkpoints is a little off."""

    def fold(self, model: nn.Module) -> None:
        """Replace the gates in ``model`` by plain layers that compute the same."""

    def get_extra_state(self) -> Tensor:
        # A float tensor: checkpoint averaging would sum integers, and weights-only loading takes tensors alone.
        return torch.tensor([float(self.step)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = round(float(state[0]))


class Dense(PruningMethod):
    """No pruning. A model folded to smaller matrices is rebuilt by it, ready for its weights.

    Args:
        settings: keyword arguments of ``DenseSettings``.
    """

    def __init__(self, **settings):
        super().__init__()
        self.settings = DenseSettings(**settings)

    def attach(self, model: nn.Module) -> None:
        make_room(model, self.settings.channels)


def cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` to ``end`` along half a period of a cosine, as ``progress`` goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def parameter_groups(
    model: nn.Module, new_parameters: Iterable[nn.Parameter], lr: float, new_lr: float | None = None, **options
) -> list[dict]:
    """Optimizer groups: the model's trainable parameters, and the pruning method's without weight decay.

    Args:
        model: with the method attached.
        new_parameters: ``PruningMethod.new_parameters()``.
        lr: learning rate of the weights.
        new_lr: learning rate of the new parameters; the weights' where None.
        options: more settings of the weights' group, such as ``weight_decay``.
    """
    new = list(new_parameters)
    own = {id(p) for p in new}
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": weights, "lr": lr, **options}]
    if new:
        groups.append({"params": new, "lr": lr if new_lr is None else new_lr, "weight_decay": 0.0})
    return groups
