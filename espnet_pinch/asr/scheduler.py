"""The paper's learning rate: linear warm-up over the first part of the run, then linear decay to 0."""

from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from espnet_pinch.errors import UserError


class LinearWarmupDecay(LRScheduler, AbsBatchStepScheduler):
    """Linear warm-up to the optimizer's learning rates, then linear decay to 0 at the end of the run.

    Args:
        optimizer: the learning rates of its groups are the peaks.
        warmup_ratio: fraction of the run that warms up, 0 <= x < 1.
        total_steps: optimizer steps of the whole run; ``PruningTrainer`` sets it from the number of batches.
    """

    def __init__(self, optimizer: Optimizer, warmup_ratio: float = 0.1, total_steps: int | None = None):
        if not 0 <= warmup_ratio < 1:
            raise UserError(f"warmup_ratio must be at least 0 and under 1, not {warmup_ratio}")
        self.warmup_ratio = warmup_ratio
        self.total_steps = total_steps
        super().__init__(optimizer)

    def set_total_steps(self, total_steps: int) -> None:
        """Set the length of the run in optimizer steps. Call it before the first step."""
        self.total_steps = total_steps
        for group, lr in zip(self.optimizer.param_groups, self.get_lr()):
            group["lr"] = lr

    def get_lr(self) -> list[float]:
        factor = self._factor(self.last_epoch)
        return [lr * factor for lr in self.base_lrs]

    def _factor(self, step: int) -> float:
        if self.total_steps is None:
            return 0.0
        warmup = max(round(self.total_steps * self.warmup_ratio), 1)
        if step < warmup:
            return (step + 1) / warmup  # the first step already learns
        return max(self.total_steps - step, 0) / max(self.total_steps - warmup, 1)

    def state_dict(self) -> dict:
        # The current configuration gives the length of the run: a resumed run may train longer.
        return {k: v for k, v in super().state_dict().items() if k not in ("total_steps", "warmup_ratio")}
