"""The base class of all pruning methods, which a training loop calls."""

import math
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from espnet_pinch.core.parameters import Width
from espnet_pinch.core.settings import MethodSettings
from espnet_pinch.core.units import Structure

# After so many optimizer steps, all without the new parameters, the optimizer was surely made without them.
FORGOTTEN = 2


class PruningMethod(nn.Module):
    """A pruning method, attached to one model.

    A training loop calls ``attach`` once, makes its optimizer from ``parameter_groups()``, adds ``penalty()`` to every
    loss, and calls ``fold`` at the end. Hooks do the work that is due once in each optimizer step: the model's forward
    pass begins a step, and the optimizer's step ends it. ``state_dict`` holds the method's progress, so a resumed run
    continues where it stopped.

    A new method is a subclass, registered with ``espnet_pinch.core.registry.register``. It overrides those of the
    following that it needs: ``put_gates``, ``new_parameters``, ``begin_step``, ``penalty``, ``after_step``,
    ``layer_counts``, ``on_target``, ``land`` and ``take_gates``.

    Args:
        settings: fields of ``settings_class``.
    """

    settings_class: type[MethodSettings] = MethodSettings
    structured = False  # whether whole channels are pruned, so that the folded matrices can be made smaller
    advice = ""  # what to do after a run that ended below its target, for the end of a sentence
    needs_total_steps = False  # whether the method has a schedule over the run

    def __init__(self, **settings):
        super().__init__()
        if settings.get("target_macs") is not None:
            settings.setdefault("target_sparsity", None)
        self.settings = self.settings_class(**settings)
        self.total_steps: int | None = None  # optimizer steps of the whole run
        self.step = 0  # optimizer steps done
        self._structure: Structure | None = None
        self._model: list[nn.Module] = []  # in a list, so that it does not become a submodule of the method
        self._begun = self._asked = -1  # the last step that was begun, and the last in which penalty() was called
        self._hook: RemovableHandle | None = None  # while it is attached
        self._steps_without = 0  # steps of optimizers that hold parameters of the model, but not the new ones

    # -- what a training loop calls

    def attach(self, model: nn.Module, total_steps: int | None = None, structure: Structure | None = None) -> None:
        """Put the method's gates into ``model``.

        Args:
            model: the module whose forward pass the training loop calls, or a part of it that every forward pass calls.
            total_steps: optimizer steps of the whole run. A method with a schedule needs it by the first step.
            structure: the model's heads, channels and filters, for a method that prunes them. If None, that of the
                model of a family of upstreams whose layers match; without such a model, that of a plain Transformer.

        Raises:
            UserError: no layer matches the settings; or whole units are pruned, and layers of several models match.
        """
        self.total_steps, self._structure = total_steps, structure
        self._model = [model]
        self.put_gates(model)
        self._hook = model.register_forward_pre_hook(self._before_forward)
        _attached.add(self)

    def parameter_groups(
        self, lr: float, model: nn.Module | None = None, new_lr: float | None = None, **options
    ) -> list[dict]:
        """Groups for an optimizer: the model's trainable parameters, and the method's new ones without weight decay.

        Args:
            lr: learning rate of the weights.
            model: the whole model, if the method is attached to a part of it.
            new_lr: learning rate of the new parameters. If None, it is ``new_lr(lr)``.
            options: more settings of the weights' group, such as ``weight_decay``.
        """
        new = self.new_parameters()
        own = {id(p) for p in new}
        weights = [p for p in (model or self._model[0]).parameters() if p.requires_grad and id(p) not in own]
        groups = [{"params": weights, "lr": lr, **options}]
        if new:
            rate = self.new_lr(lr) if new_lr is None else new_lr
            groups.append({"params": new, "lr": rate, "weight_decay": 0.0})
        return groups

    def penalty(self) -> Tensor | float:
        """The term that the method adds to the loss, a scalar. It may be called before or after the forward pass."""
        self._ask()
        return 0.0

    def fold(self) -> dict[str, int]:
        """End the method: replace the gates by plain layers that compute the same.

        Returns: ``{group: units left}`` of the layers that have become smaller.
        """
        assert self._hook is not None, "attach() comes first"
        self.weights_changed()
        widths = self.take_gates(self._model[0])
        if widths and self.structure.record:
            self.structure.record(widths)
        self._hook.remove()
        self._hook = None
        _attached.discard(self)
        return widths

    @property
    def structure(self) -> Structure:
        """The model's heads, channels and filters, for a method that prunes them."""
        if self._structure is None:
            self._structure = _structure_of(self._model[0], self.settings.layers)
        return self._structure

    @property
    def targets(self) -> tuple[float, ...]:
        """The targets of the run, fractions that rise."""
        return self.settings.targets

    @property
    def target_in_use(self) -> float:
        """Of several targets, the one that the model is at."""
        return self.targets[0]

    def use(self, target: float) -> None:
        """Of a run with several targets, take this one: an evaluation, ``sparsity``, ``fold`` and so on are of it.

        Raises:
            ValueError: the run has no such target.
        """
        self.targets.index(target)

    # -- what a method overrides

    def put_gates(self, model: nn.Module) -> None:
        """Replace layers of ``model`` by gated ones, or prune them; raises UserError if no layer matches."""

    def take_gates(self, model: nn.Module) -> dict[str, int]:
        """Replace the gated layers of ``model`` by plain ones that compute the same; returns as ``fold``."""
        return {}

    def new_parameters(self) -> list[nn.Parameter]:
        """The parameters that the method trains besides the model's own."""
        return []

    def new_lr(self, lr: float) -> float:
        """Learning rate of the new parameters, beside that of the weights."""
        return lr

    @staticmethod
    def self_contained(own: Mapping) -> dict:
        """The method's own settings, with each name of a file replaced by what is in that file."""
        return dict(own)

    @property
    def needs_penalty(self) -> bool:
        """Whether ``penalty()`` must be called in every step."""
        return False

    def begin_step(self) -> None:
        """Called once in each optimizer step, before its first forward pass and its first penalty."""

    def before_forward(self) -> None:
        """Called before every forward pass in training mode."""

    def weights_changed(self) -> None:
        """Forget what was computed of the weights.

        Called after a step of any optimizer: a fused one leaves no sign at the tensors that it has changed.
        """

    @torch.no_grad()
    def after_step(self) -> None:
        """Called after each optimizer step; counts it."""
        self.step += 1

    @torch.no_grad()
    def skip_step(self) -> None:
        """Count a step that the optimizer left out, as the loss scaling of mixed precision does.

        A method's schedule ends with the run, of which such a step is a part. ``PruningTrainer`` and the recipe's
        training call this; another loop calls it where the optimizer has not stepped.
        """
        self._begin()
        if all(parameter.isfinite().all() for parameter in self._model[0].parameters()):
            self.after_step()
        else:  # the training has diverged: nothing can be held
            self.step += 1

    def group_widths(self) -> dict[str, Width]:
        """``{group: its units}`` of a method that prunes whole units."""
        return {}

    def layer_counts(self) -> dict[str, tuple[float, int]]:
        """``{layer: (pruned weights, weights)}`` of the gated layers; expected numbers while a search lasts."""
        return {}

    def on_target(self) -> bool:
        """Whether the model has the sparsity that it should have at the end."""
        return True

    def fell_short(self) -> bool:
        """At the end of a run: whether it is below its target."""
        return not self.on_target()

    def scalars(self) -> dict[str, float]:
        """Figures for the training log."""
        return {}

    def land(self) -> None:
        """Bring a trained model exactly to its target: averaging checkpoints may have moved it away."""

    # -- the state of the method

    def sparsity(self) -> float:
        """Overall sparsity: pruned weights over gated weights; 0.0 if nothing is gated."""
        counts = self.layer_counts().values()
        return sum(pruned for pruned, _ in counts) / max(sum(weights for _, weights in counts), 1)

    def reached(self) -> float:
        """The fraction of the target's budget, weights or multiplications, that is pruned."""
        return self.sparsity()

    def layer_sparsity(self) -> dict[str, float]:
        """``{layer: fraction of its weights that is pruned}``."""
        return {name: pruned / weights for name, (pruned, weights) in self.layer_counts().items()}

    def collapsed(self) -> dict[str, str]:
        """``{layer or group: what has become of it}``, of those that have nothing left, or no more than they must."""
        return {
            name: "all of its weights are pruned, it outputs only its bias"
            for name, sparsity in self.layer_sparsity().items()
            if sparsity == 1.0
        }

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, 0 to 1; 0 while the length of the run is unknown."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0

    def get_extra_state(self) -> Tensor:
        # A float tensor: checkpoint averaging would sum integers, and weights-only loading accepts only tensors.
        return torch.tensor([float(self.step)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.step = round(float(state[0]))

    def extra_repr(self) -> str:
        return repr(self.settings)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self._hook is not None:  # the copy of an attached method, of whose model the optimizer may be
            _attached.add(self)

    # -- the course of a step

    def _before_forward(self, model: nn.Module, _inputs) -> None:
        if model.training:
            self._begin()
            self.before_forward()

    def _begin(self) -> None:
        if self._begun == self.step:
            return
        if self.needs_total_steps and not self.total_steps:
            raise RuntimeError(f"{type(self).__name__} needs the length of the run: call attach(model, total_steps)")
        self._begun = self.step
        self.begin_step()

    def _ask(self) -> None:
        """Record a call of ``penalty``, which calls this first."""
        self._begin()
        self._asked = self.step

    def _counts(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether a step of this optimizer counts as a step of the method."""
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = self.new_parameters()
        if not new:
            return any(id(p) in held for p in self._model[0].parameters())
        if id(new[0]) in held:
            return True
        if any(id(p) in held for p in self._model[0].parameters()):
            self._steps_without += 1
            if self.step == 0 and self._steps_without >= FORGOTTEN:
                raise RuntimeError(
                    f"the optimizer does not train the new parameters of {type(self).__name__}: make it after "
                    "attach(), from parameter_groups()"
                )
        return False

    def _after_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._counts(optimizer):
            return
        if self._begun != self.step:
            raise RuntimeError(
                f"an optimizer step came without a forward pass in training mode of the model that "
                f"{type(self).__name__} is attached to: attach it to the module whose forward pass the training calls"
            )
        if self._asked != self.step and self.needs_penalty:
            raise RuntimeError(
                f"an optimizer step came without the penalty of {type(self).__name__}: add penalty() to the loss"
            )
        self.after_step()


def _structure_of(model: nn.Module, layers: str) -> Structure:
    if not any(hasattr(module, "config") for module in model.modules()):
        return Structure()
    from espnet_pinch.asr.family import structure_of  # the one thing of a model of transformers that the core asks for

    return structure_of(model, layers)


def generator_of_step(seed: int, step: int) -> torch.Generator:
    """Random numbers that depend on the seed of a run and on the step alone.

    So the processes of a distributed run, the micro-batches of a step and a resumed run draw the same.
    """
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


# The attached methods of this process. One hook serves them all, because it stays as long as the process lives.
_attached: weakref.WeakSet[PruningMethod] = weakref.WeakSet()


def _after_any_optimizer(optimizer: torch.optim.Optimizer, *_) -> None:
    for method in list(_attached):
        method.weights_changed()
        method._after_optimizer(optimizer)


register_optimizer_step_post_hook(_after_any_optimizer)


def cosine(start: float, end: float, progress: float) -> float:
    """The value on half a period of a cosine that runs from ``start`` to ``end`` as ``progress`` runs from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
