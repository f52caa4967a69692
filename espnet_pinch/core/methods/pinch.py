"""Self-pinching gates on a model: the penalty, the temperature, the switch of eta, and the landing on the target."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from espnet_pinch.core.budget import WeightGates
from espnet_pinch.core.method import cosine, generator_of_step
from espnet_pinch.core.one_pass import OnePassMethod, OnePassSettings
from espnet_pinch.core.parameters import Width
from espnet_pinch.core.registry import register
from espnet_pinch.core.settings import check_count, check_flag, check_number, check_target_sparsity, shown
from espnet_pinch.core.unit_gates import UnitGates
from espnet_pinch.errors import UserError

UNITS = ("weight", "structured")
# Scores of units have a mean of 1, weights are some hundredths: in hundreds of steps a threshold has to get as far.
UNIT_RATE = 20
MULTIPLE = 8  # vector units like it


@dataclasses.dataclass(frozen=True)
class PinchSettings(OnePassSettings):
    """Settings of the self-pinching gates; the defaults are the paper's values for a base model.

    Attributes:
        threshold_init: initial value of every threshold.
        threshold_lr: learning rate of the thresholds; None means that of the model's weights, and with "structured"
            20 times as much.
        unit: "weight" prunes single weights, as the paper does; "structured" whole heads and channels.
        conv: with "structured", prune the filters of the convolutions in front of the Transformer as well.
        multiple: with "structured", the numbers of channels and filters that are kept are multiples of it; None means
            8.
        uniform: with "structured", keep all heads and one number of channels for all blocks, so that transformers alone
            loads what is left.
    """

    takes_macs: ClassVar[bool] = True
    takes_several: ClassVar[bool] = True

    eta: float | Mapping[float, float] = dataclasses.field(default_factory=lambda: {0.0: 2e-5, 0.65: 3e-5})
    threshold_init: float = 1e-5
    threshold_lr: float | None = None
    unit: str = "weight"
    conv: bool = False
    multiple: int | None = None
    uniform: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.unit not in UNITS:
            raise UserError(f"pinch.unit must be one of {', '.join(UNITS)}, not {shown(self.unit)}")
        if len(self.targets) > 1 and self.landing != "hold":
            raise UserError("several targets need landing: hold")
        check_flag("pinch.conv", self.conv)
        check_flag("pinch.uniform", self.uniform)
        if self.multiple is not None:
            check_count("pinch.multiple", self.multiple)
        if self.unit == "weight":
            for what in ("conv", "uniform", "multiple", "target_macs"):
                value = getattr(self, what)
                if value is not None and value is not False:  # target_macs may be 0
                    raise UserError(f"{what} needs pinch.unit: structured; single weights leave no smaller layers")
        check_number("threshold_init", self.threshold_init, above=0.0)
        if self.threshold_lr is not None:
            check_number("threshold_lr", self.threshold_lr, above=0.0)


@register(
    "pinch",
    title="pinch (self-pinching gates)",
    label="pinch",
    colour="tab:blue",
    marker="o",
    variants={
        "": {},
        "structured": {"unit": "structured"},
        "structured with conv": {"unit": "structured", "conv": True},
    },
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

    Whole units are frozen once the target is met and the fraction ``reach_by`` of the run is over: the rest fine-tunes
    what is left. Units that change places late would spoil the mean of checkpoints.

    **Several targets** share the weights; each has thresholds of its own, nested: what one prunes, the next one prunes
    too. A run passes every sparsity on its way to the highest target. There a lower target takes over the thresholds
    of the moment, exactly landed. From then on it is held, as above. Once all have been reached, the steps train the
    highest, the lowest, and one drawn from those between, in turn. ``use`` says which target an evaluation is of.

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
        self.landed = [False] * len(self.targets)
        self.place = len(self.targets) - 1  # of the target in use
        self.seed = torch.initial_seed()
        self.pinched: WeightGates | UnitGates  # no submodules: the model holds the gates and saves their parameters
        self._reached: list[float | None] = [None] * len(self.targets)
        self._thresholds: list[Tensor] | None = None  # after a landing, their values before the current step

    def put_gates(self, model: nn.Module) -> None:
        """Gate the linear layers of ``model`` whose names match ``settings.layers``, or their heads and channels.

        Raises:
            UserError: no layer matches; or as ``UnitGates``.
        """
        own = self.settings
        if own.unit == "weight":
            self.pinched = WeightGates(model, own.layers, own.threshold_init, len(self.targets))
        else:
            self.pinched = UnitGates(
                model,
                own.layers,
                own.threshold_init,
                len(self.targets),
                structure=self.structure,
                conv=own.conv,
                multiple=own.multiple or MULTIPLE,
                macs=own.target_macs is not None,
                target=own.target,
                uniform=own.uniform,
            )
        self._use(self.place)

    @property
    def target_in_use(self) -> float:
        return self.targets[self.place]

    def use(self, target: float) -> None:
        self._use(self.targets.index(target))

    def _use(self, place: int) -> None:
        self.place = place
        for gate in self.pinched.gates.values():
            gate.in_use = place

    @property
    def gates(self) -> Mapping[str, nn.Module]:
        """``{layer or group: gate}``."""
        return self.pinched.gates

    def new_parameters(self) -> list[nn.Parameter]:
        return [gate.threshold for gate in self.pinched.gates.values()]

    def new_lr(self, lr: float) -> float:
        return self.settings.threshold_lr or (lr * UNIT_RATE if self.settings.unit == "structured" else lr)

    # -- schedule

    @property
    def tau(self) -> float:
        return cosine(self.settings.tau_start, self.settings.tau_end, self.progress)

    @property
    def eta(self) -> float:
        """The current weight of the penalty: 0 while the target is met."""
        return 0.0 if self.reached() >= self.targets[self.place] else self.settings.eta_for_target

    # -- training

    def begin_step(self) -> None:
        for gate in self.pinched.gates.values():
            gate.tau = self.tau
        self._use(self._turn())
        if any(self.landed):
            self._thresholds = [threshold.detach().clone() for threshold in self.new_parameters()]

    def _turn(self) -> int:
        """The place of the target that a step trains."""
        highest = len(self.targets) - 1
        if not all(self.landed):
            return highest
        between = range(1, highest)
        turns = [highest, 0, *between[:1]]
        place = turns[self.step % len(turns)]
        if place in between:
            place += int(torch.randint(len(between), (), generator=generator_of_step(self.seed, self.step)))
        return place

    def penalty(self) -> Tensor | float:
        """``eta * sum_l |M_l|_0``, a scalar; 0.0 while the target is met."""
        self._ask()
        eta = self.eta
        return eta * self.pinched.kept() if eta else 0.0

    def weights_changed(self) -> None:
        self._reached = [None] * len(self.targets)
        if isinstance(self.pinched, UnitGates):
            for gate in self.pinched.gates.values():
                gate.forget()

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the optimizer step, then keep the sparsity within its bounds."""
        super().after_step()
        self._reached = [None] * len(self.targets)
        if self._thresholds:
            # Restored, not frozen: DistributedDataParallel needs their gradients, and momentum moves them anyway.
            landed = torch.tensor(self.landed, device=self._thresholds[0].device)
            for threshold, before in zip(self.new_parameters(), self._thresholds):
                threshold.copy_(torch.where(landed.view(threshold.shape), before, threshold))
        if self.settings.landing == "hold":
            self._hold_all()
        self._use(len(self.targets) - 1)  # whatever is done between two steps is of the highest

    @torch.no_grad()
    def land(self) -> None:
        self.weights_changed()
        if self.settings.landing == "hold":
            self.landed = [True] * len(self.targets)
            self._hold_all()

    def _hold_all(self) -> None:
        """Hold the targets, the highest first, as it bounds the thresholds of those below it."""
        before = self.place
        for place in reversed(range(len(self.targets))):
            self._use(place)
            if place < len(self.targets) - 1:
                for gate in self.pinched.gates.values():
                    if not self.landed[place]:
                        gate.threshold[place] = gate.threshold[-1]
                    gate.current.copy_(gate.times(1.0))
            if self.landed[place] or place == len(self.targets) - 1 or self.reached() >= self.targets[place]:
                self._hold()
        self._use(before)

    def _hold(self) -> None:
        """Keep the target in use within its bounds."""
        target = self.targets[self.place]
        if self.pinched.frozen():
            return
        landed = self.landed[self.place] or self.reached() >= target
        bound = target if landed else self._lowest()
        if self.reached() < bound or (self.reached() >= target and self.pinched.overshoots(target)):
            self.pinched.land(bound if self.reached() < bound else target)
            self._reached[self.place] = None
            landed = landed or self.reached() >= target
        self.landed[self.place] = landed
        if landed and self.progress >= self.settings.reach_by:
            self.pinched.freeze()

    def _lowest(self) -> float:
        """The lowest sparsity allowed before the highest target is reached.

        It is a line from 0 at reach_by / 2 up to that target, and no less than any lower target that has been reached:
        the thresholds of the highest bound those of the others.
        """
        reach_by = self.settings.reach_by
        part = (self.progress - reach_by / 2) / (reach_by / 2)
        passed = [target for target, landed in zip(self.targets, self.landed) if landed]
        return max(self.settings.target * min(max(part, 0.0), 1.0), *passed, 0.0)

    @torch.no_grad()
    def aim(self, target: float) -> None:
        """After a training: give the run another target, landed exactly.

        Between two trained targets the thresholds are interpolated, on a scale of ratios. Outside of them one common
        factor scales those of the nearest. Of a group's units, those that more of the targets keep are kept first.
        Their number is between those of the trained targets on both sides.

        Args:
            target: 0 < target < 1, of the kind that the run has.

        Raises:
            UserError: as ``check_target_sparsity``; or the thresholds do not reach it.
        """
        if not check_target_sparsity(target, "the target"):
            raise UserError("the target must be over 0")
        if self.settings.target_macs is None:
            settings = dataclasses.replace(self.settings, target_sparsity=target)
        else:
            settings = dataclasses.replace(self.settings, target_macs=target)
        below = max((i for i, trained in enumerate(self.targets) if trained <= target), default=None)
        above = min((i for i, trained in enumerate(self.targets) if trained >= target), default=None)
        high = len(self.targets) - 1 if above is None else above
        low = 0 if below is None else below
        span = self.targets[high] - self.targets[low]
        part = (target - self.targets[low]) / span if span else 0.0
        for gate in self.pinched.gates.values():
            trained = gate.trained()
            gate.restart(trained[low] ** (1 - part) * trained[high] ** part, below, above)
        self.settings, self.landed, self._reached = settings, [True], [None]
        self._use(0)
        self.pinched.land(target)
        self.pinched.freeze()
        self._reached = [None]

    # -- the state of the method

    def reached(self) -> float:
        """The fraction of the budget, weights or multiplications, that is pruned."""
        found = self._reached[self.place]
        if found is None:
            found = self._reached[self.place] = self.pinched.reached()
        return found

    def sparsity(self) -> float:
        """Overall sparsity: pruned weights over gated weights."""
        return self.reached() if self.settings.target_macs is None else self.pinched.sparsity()

    def on_target(self) -> bool:
        """Whether the target is met; by whole units, once they are frozen: checkpoints with others have no mean."""
        met = self.reached() >= self.targets[self.place]
        free = not self.pinched.freezes or self.settings.landing == "paper"
        return met and (free or self.pinched.frozen())

    def layer_counts(self) -> dict[str, tuple[float, int]]:
        return self.pinched.layer_counts()

    def scalars(self) -> dict[str, float]:
        in_use = self.place
        self._use(len(self.targets) - 1)  # the highest, whichever a step trains
        more = {} if self.settings.target_macs is None else {"macs_saved": self.reached()}
        found = {**super().scalars(), **more}
        self._use(in_use)
        return found

    def collapsed(self) -> dict[str, str]:
        return super().collapsed() if isinstance(self.pinched, WeightGates) else self.pinched.collapsed()

    def group_widths(self) -> dict[str, Width]:
        return self.pinched.group_widths() if isinstance(self.pinched, UnitGates) else {}

    def take_gates(self, model: nn.Module) -> dict[str, int]:
        widths = self.pinched.fold(model)
        self.pinched.gates.clear()
        return widths

    # -- resume

    def get_extra_state(self) -> Tensor:
        return torch.tensor([float(self.step), *map(float, self.landed)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        self.landed = [bool(landed > 0.5) for landed in state[1:]]
        self._reached = [None] * len(self.targets)
