"""Self-pinching gates on a model: the penalty, the temperature, the switch of eta, and the landing on the target."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from espnet_pinch.core import budget
from espnet_pinch.core.attach import find_linears, replace_module
from espnet_pinch.core.gate import GatedLinear
from espnet_pinch.core.method import cosine
from espnet_pinch.core.one_pass import OnePassMethod, OnePassSettings
from espnet_pinch.core.registry import register
from espnet_pinch.core.settings import check_number

# How far above the target the sparsity may end: half of the 0.1 point that is allowed for the result.
LANDING_TOLERANCE = 0.0005


@dataclasses.dataclass(frozen=True)
class PinchSettings(OnePassSettings):
    """Settings of the self-pinching gates; the defaults are the paper's values for a base model.

    Attributes:
        threshold_init: initial value of every threshold.
        threshold_lr: learning rate of the thresholds; None means that of the model's weights.
    """

    eta: float | Mapping[float, float] = dataclasses.field(default_factory=lambda: {0.0: 2e-5, 0.65: 3e-5})
    threshold_init: float = 1e-5
    threshold_lr: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_number("threshold_init", self.threshold_init, above=0.0)
        if self.threshold_lr is not None:
            check_number("threshold_lr", self.threshold_lr, above=0.0)


@register(
    "pinch",
    title="pinch (self-pinching gates)",
    label="pinch",
    colour="tab:blue",
    marker="o",
    extra_per_layer=1,
)
class Pinch(OnePassMethod):
    """One-pass pruning with self-pinching gates (arXiv 2505.22608).

    While the sparsity is under its target, the loss gets ``eta`` times the number of kept weights; otherwise it gets
    nothing. ``tau`` falls along a cosine over ``total_steps``.

    The paper does not say how a run ends exactly at its target, nor whether the thresholds still move when ``eta`` is
    0. With ``landing="hold"`` their ratios are fixed from the step that reaches the target. After each step that leaves
    [target, target + 0.05 point], one common factor on the thresholds brings the sparsity back, until the run ends. The
    sparsity is also kept above a line that reaches the target at the fraction ``reach_by`` of the run, for runs that
    are too short to reach it by eta alone. With ``landing="paper"`` neither happens: when ``eta`` is 0, the thresholds
    follow the rest of the loss.

    Args:
        settings: keyword arguments of ``PinchSettings``.

    >>> model = nn.ModuleDict({"fc": nn.Linear(8, 8)})
    >>> pinch = Pinch(target_sparsity=0.5, layers="fc")
    >>> pinch.attach(model)
    >>> len(pinch.new_parameters())
    1
    """

    settings_class = PinchSettings
    settings: PinchSettings

    def __init__(self, **settings):
        super().__init__(**settings)
        self.landed = False
        self.gates: dict[str, GatedLinear] = {}  # not submodules: the model holds them and saves their parameters
        self._sparsity: float | None = None
        self._thresholds: list[Tensor] | None = None  # after the landing, their values before the current step

    def put_gates(self, model: nn.Module) -> None:
        """Gate every linear layer of ``model`` whose name matches ``settings.layers``.

        Raises:
            UserError: no layer matches.
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
        """The current weight of the penalty: 0 while the target is met."""
        return 0.0 if self.on_target() else self.settings.eta_for_target

    # -- training

    def begin_step(self) -> None:
        for gate in self.gates.values():
            gate.tau = self.tau
        if self.landed:
            self._thresholds = [gate.threshold.detach().clone() for gate in self.gates.values()]

    def penalty(self) -> Tensor | float:
        """``eta * sum_l |M_l|_0``, a scalar; 0.0 while the target is met."""
        self._ask()
        eta = self.eta
        return eta * torch.stack([gate.kept() for gate in self.gates.values()]).sum() if eta else 0.0

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the optimizer step, then keep the sparsity within its bounds."""
        super().after_step()
        self._sparsity = None
        if self.landed and self._thresholds:
            # Restored, not frozen: DistributedDataParallel needs their gradients, and momentum moves them anyway.
            for gate, before in zip(self.gates.values(), self._thresholds):
                gate.threshold.copy_(before)
        if self.settings.landing == "hold" and self.settings.target_sparsity > 0:
            self._hold()

    def land(self) -> None:
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
        """The lowest sparsity allowed before the target is reached: a line from 0 at reach_by / 2 up to the target."""
        reach_by = self.settings.reach_by
        part = (self.progress - reach_by / 2) / (reach_by / 2)
        return self.settings.target_sparsity * min(max(part, 0.0), 1.0)

    # -- the state of the method

    def sparsity(self) -> float:
        """Overall sparsity: pruned weights over gated weights."""
        if self._sparsity is None:
            self._sparsity = budget.sparsity(list(self.gates.values()))
        return self._sparsity

    def on_target(self) -> bool:
        return self.sparsity() >= self.settings.target_sparsity

    def layer_counts(self) -> dict[str, tuple[float, int]]:
        return {name: (budget.count_pruned([gate]), budget.count_weights([gate])) for name, gate in self.gates.items()}

    def take_gates(self, model: nn.Module) -> None:
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
