"""Pruning with ``transformers.Trainer``. Two lines of a training script change:

    trainer = PruningTrainer(pruning=Pinch(target_sparsity=0.65), model=model, args=arguments, ...)
    trainer.train()
    trainer.pruning.fold()

transformers handles learning-rate schedules, gradient accumulation, mixed precision, several processes and resuming.
For a subclass of ``Trainer``, put ``PruningMixin`` in front of it: ``class MyTrainer(PruningMixin, TheirTrainer)``.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from espnet_pinch.core.method import PruningMethod

STATE = "pruning.pth"  # file in a checkpoint's folder with the progress of the method


class PruningMixin:
    """Adds a pruning method to a ``transformers.Trainer``.

    The method is attached to ``model`` when the trainer is made. Its new parameters are trained without weight decay,
    with the learning rate ``pruning.new_lr``. The penalty is added to the training loss, but not to the
    loss of an evaluation.

    Args:
        pruning: a method that is not attached to a model yet.
        args, kwargs: as for the trainer that the mixin extends.
    """

    def __init__(self, *args, pruning: PruningMethod, **kwargs):
        super().__init__(*args, **kwargs)
        self.pruning = pruning
        pruning.attach(self.model)
        self.add_callback(_Progress(pruning))

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        made_here = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        new = self.pruning.new_parameters()
        if made_here and new:
            own = {id(p) for p in new}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in own]
            rate = self.pruning.new_lr(optimizer.defaults["lr"])
            optimizer.add_param_group({"params": new, "weight_decay": 0.0, "lr": rate})
        return optimizer

    def create_scheduler(self, num_training_steps: int, *args, **kwargs):
        self.pruning.total_steps = num_training_steps
        return super().create_scheduler(num_training_steps, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor | tuple:
        found = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss, outputs = found
        if model.training:
            penalty = self.pruning.penalty()
            if self._is_a_sum(num_items_in_batch):  # the loss of a step is the sum of its micro-batches, not their mean
                penalty = penalty / self.current_gradient_accumulation_steps
            loss = loss + penalty
        return (loss, outputs) if return_outputs else loss

    def _is_a_sum(self, num_items_in_batch) -> bool:
        """Whether the losses of a step's micro-batches add up to the step's: the rule of ``Trainer.training_step``."""
        stated = getattr(self, "loss_is_scaled_for_ga", None)
        if stated is not None:
            return stated
        return (self.model_accepts_loss_kwargs and num_items_in_batch is not None) or self.compute_loss_func is not None

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """Train as ``Trainer.train`` does. On resuming, also load the method's progress.

        Raises:
            FileNotFoundError: the checkpoint to resume from has no progress of a pruning method.
        """
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            self._load_progress(Path(folder))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _load_progress(self, checkpoint: Path) -> None:
        path = checkpoint / STATE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: the checkpoint was made without a pruning method")
        self.pruning.load_state_dict(torch.load(path, weights_only=True))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(self.state.best_model_checkpoint)
        self._load_progress(best)
        for target in self.pruning.targets:  # the highest stays in use
            self.pruning.use(target)
            if not self.pruning.on_target():
                reached = f"{100 * self.pruning.reached():.2f} % of {100 * target:g} %"
                logging.warning(
                    f"{best}, the best checkpoint, is not on the pruning's target: {reached}. Choose among those that "
                    "are, or leave load_best_model_at_end out"
                )


class PruningTrainer(PruningMixin, Trainer):
    """``transformers.Trainer`` with a pruning method."""


class _Progress(TrainerCallback):
    """Counts the steps that the loss scaling leaves out, and saves the method's progress in every checkpoint."""

    def __init__(self, pruning: PruningMethod):
        self.pruning = pruning

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.pruning.step < state.global_step:
            self.pruning.skip_step()

    def on_save(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
            torch.save(self.pruning.state_dict(), folder / STATE)
