"""Self-pinching gates on a model: penalty, temperature, the switch of eta, and the landing on the target."""

import torch
from torch import Tensor, nn

from espnet_pinch.core import budget
from espnet_pinch.core.attach import find_linears, replace_module
from espnet_pinch.core.gate import GatedLinear
from espnet_pinch.core.method import PruningMethod, cosine
from espnet_pinch.core.settings import PinchSettings

# How far over the target a landing may end: half of the 0.1 point that the result has to keep to.
LANDING_TOLERANCE = 0.0005


class Pinch(PruningMethod):
    """One-pass pruning with self-pinching gates (arXiv 2505.22608).

    The loss gets ``eta`` times the number of kept weights while the sparsity is under its target, nothing once it
    is there. ``tau`` falls along a cosine over ``total_steps``.

    The paper leaves open how a run ends exactly at its nominal sparsity, and whether the thresholds move on once
    ``eta`` is 0. With ``landing="hold"`` they stay as they stand to each other when the target is reached, and are
    multiplied by one common factor after each step that strays, so that the sparsity stays in
    [target, target + 0.05 point] for the rest of the run. A run too short to get there by its eta alone is lifted
    along a line that reaches the target at the part ``reach_by`` of the run. With ``landing="paper"`` neither
    happens: the thresholds follow the loss alone once ``eta`` is 0.

    Args:
        settings: keyword arguments of ``PinchSettings``.

    >>> model = nn.ModuleDict({"fc": nn.Linear(8, 8)})
    >>> pinch = Pinch(target_sparsity=0.5, layers="fc")
    >>> pinch.attach(model)
    >>> len(pinch.new_parameters())
    1
    """

    def __init__(self, **settings):
        super().__init__()
        self.settings = PinchSettings(**settings)
        self.landed = False
        self.gates: dict[str, GatedLinear] = {}  # not submodules: the model holds them and saves their parameters
        self._sparsity: float | None = None
        self._thresholds: list[Tensor] | None = None  # once landed, those that the step under way started from

    def attach(self, model: nn.Module) -> None:
        """Gate every linear layer of ``model`` whose name matches ``settings.layers``.

        Raises:
            ValueError: no layer matches.
        """
        for name, linear in find_linears(model, self.settings.layers).items():
            gate = GatedLinear(linear, self.settings.threshold_init)
            replace_module(model, name, gate)
            self.gates[name] = gate

    def new_parameters(self) -> list[nn.Parameter]:
        return [gate.threshold for gate in self.gates.values()]

    @property
    def new_lr(self) -> float | None:
        return self.settings.threshold_lr

    # -- schedule

    @property
    def tau(self) -> float:
        return cosine(self.settings.tau_start, self.settings.tau_end, self.progress)

    @property
    def eta(self) -> float:
        """The penalty's weight in force: 0 while the target is met."""
        return 0.0 if self.on_target() else self.settings.eta_for_target

    # -- training

    def penalty(self) -> Tensor | float:
        """``eta * sum_l |M_l|_0``, a scalar; 0.0 while the target is met."""
        tau = self.tau
        for gate in self.gates.values():
            gate.tau = tau
        if self.landed:
            self._thresholds = [gate.threshold.detach().clone() for gate in self.gates.values()]
        eta = self.eta
        return eta * torch.stack([gate.kept() for gate in self.gates.values()]).sum() if eta else 0.0

    @torch.no_grad()
    def after_step(self, *_) -> None:
        """Count the optimizer step, then keep the sparsity to its bounds."""
        super().after_step()
        self._sparsity = None
        if self.landed and self._thresholds:
            # Put back, not frozen: an optimizer moves what has no gradient, and DistributedDataParallel wants one.
            for gate, before in zip(self.gates.values(), self._thresholds):
                gate.threshold.copy_(before)
        if self.settings.landing == "hold" and self.settings.target_sparsity > 0:
            self._hold()

    def land(self) -> None:
        """With ``landing="hold"``, the last word on the sparsity: nothing to do but on the mean of checkpoints."""
        if self.settings.landing == "hold" and self.settings.target_sparsity > 0:
            self.landed = True
            self._hold()

    def _hold(self) -> None:
        target = self.settings.target_sparsity
        self.landed = self.landed or self.sparsity() >= target
        bound = target if self.landed else self._lowest()
        if self.sparsity() < bound or self.sparsity() > target + LANDING_TOLERANCE:
            aim = bound if self.sparsity() < bound else target
            budget.land(list(self.gates.values()), aim, LANDING_TOLERANCE / 2)
            self._sparsity = None
            self.landed = self.landed or self.sparsity() >= target

    def _lowest(self) -> float:
        """The least sparsity allowed before the target is reached: a line from 0 at reach_by / 2 up to the target."""
        reach_by = self.settings.reach_by
        part = (self.progress - reach_by / 2) / (reach_by / 2)
        return self.settings.target_sparsity * min(max(part, 0.0), 1.0)

    # -- what there is to know

    def sparsity(self) -> float:
        """Overall sparsity: pruned weights over gated weights."""
        if self._sparsity is None:
            self._sparsity = budget.sparsity(list(self.gates.values()))
        return self._sparsity

    def on_target(self) -> bool:
        return self.sparsity() >= self.settings.target_sparsity

    def scalars(self) -> dict[str, float]:
        return {"sparsity": self.sparsity(), "tau": self.tau, "eta": self.eta}

    def layer_sparsity(self) -> dict[str, float]:
        return {name: budget.sparsity([gate]) for name, gate in self.gates.items()}

    def fold(self, model: nn.Module) -> None:
        for name, gate in self.gates.items():
            replace_module(model, name, gate.fold())
        self.gates.clear()

    # -- resume

    def get_extra_state(self) -> Tensor:
        return torch.tensor([float(self.step), float(self.landed)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        self.landed = bool(state[1] > 0.5)
        self._sparsity = None
