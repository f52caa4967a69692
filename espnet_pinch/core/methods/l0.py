"""L0: hard-concrete gates on whole heads, channels and filters, the structured pruning that the field uses.

Every unit has a learnable ``log_alpha``. In training its gate is a sample of the hard-concrete distribution (Louizos
and others, arXiv 1712.01312), which is exactly 0 or 1 with some probability. An augmented Lagrangian, whose multipliers
are learnt by ascent, pulls the expected budget to a target that rises over the first steps. DPHuBERT (arXiv
2305.17651), HJ-pruning (arXiv 2302.14132) and DiariZen do this, with the settings that are the defaults here.

Their searches take tens of thousands of steps. A short run needs a larger ``gate_lr``, or the gates hardly move.

Where it departs from them: the gate multiplies the weights that read a unit, not its output, which is the same number;
layer norms over filters see the open ones alone, so that what is cut computes the same; a run may be landed exactly.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from espnet_pinch.core.group_gates import GroupGate, GroupGates, counts
from espnet_pinch.core.method import generator_of_step
from espnet_pinch.core.parameters import Width
from espnet_pinch.core.registry import register
from espnet_pinch.core.search import Search, smallest_charge
from espnet_pinch.core.settings import MethodSettings, check_count, check_flag, check_number, shown
from espnet_pinch.core.units import Group
from espnet_pinch.errors import UserError

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # temperature, and the ends that the concrete distribution is stretched to
_SHIFT = BETA * math.log(-GAMMA / ZETA)
FAR = 0.1  # a search that ends so far from its target is none


@dataclasses.dataclass(frozen=True)
class L0Settings(MethodSettings):
    """Settings of the hard-concrete gates.

    Attributes:
        gate_lr: learning rate of the gates and the multipliers; the weights' own where None.
        drop_init: probability of a closed gate before the training, 0 < x < 1.
        warmup: fraction of the run over which the target rises from 0.
        landing: "hold" ends the search after ``reach_by`` of the run, on the target, and fine-tunes what is left.
            "free" searches to the end, and takes what comes out.
        reach_by: with "hold", the fraction of the run that the search takes; 0 < x <= 1.
        conv: the filters of the convolutions are units as well.
        multiple: the numbers of channels and filters that are kept are multiples of it.
    """

    takes_macs: ClassVar[bool] = True

    gate_lr: float | None = 2e-2
    drop_init: float = 0.01
    warmup: float = 0.1
    landing: str = "hold"
    reach_by: float = 0.5
    conv: bool = False
    multiple: int = 8

    def __post_init__(self):
        super().__post_init__()
        if self.gate_lr is not None:
            check_number("l0.gate_lr", self.gate_lr, above=0.0)
        for name in ("drop_init", "warmup", "reach_by"):
            if check_number(f"l0.{name}", getattr(self, name), above=0.0) > 1:
                raise UserError(f"l0.{name} must be at most 1, not {getattr(self, name)}")
        if self.drop_init == 1:
            raise UserError("l0.drop_init must be under 1: gates that are all closed never open")
        if self.landing not in ("hold", "free"):
            raise UserError(f"l0.landing must be 'hold' or 'free', not {shown(self.landing)}")
        check_flag("l0.conv", self.conv)
        check_count("l0.multiple", self.multiple)


class HardConcreteGate(GroupGate):
    """A gate for each unit of a group.

    Args:
        groups, weights: as for ``GroupGate``; one group.
        drop_init: probability of a closed gate.
    """

    left: Tensor

    def __init__(self, groups: Sequence[Group], weights: Sequence[Sequence[Tensor]], drop_init: float):
        super().__init__(groups, weights)
        units = groups[0].units
        start = math.log((1 - drop_init) / drop_init)
        self.log_alpha = nn.Parameter(weights[0][0].new_full((units,), start))  # (units,)
        # Which units are kept once the search has ended; 1 for all of them before.
        self.register_buffer("left", weights[0][0].new_ones(units))
        self.noise: Tensor | None = None  # (units,), uniform in (0, 1); while searching

    @property
    def sample(self) -> Tensor:
        """The gates with the noise, (units,)."""
        assert self.noise is not None, "the search is over"
        concrete = ((self.noise.logit() + self.log_alpha) / BETA).sigmoid()
        return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def open(self) -> Tensor:
        """Probability that a gate is not closed, (units,)."""
        return (self.log_alpha - _SHIFT).sigmoid()

    def still(self) -> Tensor:
        """The gates without noise, (units,), over 0 and under 1: about their mean, as DPHuBERT has it."""
        return (0.8 * self.log_alpha / BETA).sigmoid()

    def value(self) -> Tensor:
        """What the weights that read the units are multiplied with, (units,)."""
        if self.noise is None:
            return self.left
        return self.sample if self.training else self.still() * self.likeliest(self.expected())

    def expected(self, bonus: float = 0.0) -> int:
        """The allowed number of units nearest to what is open by expectation, with ``bonus`` on each ``log_alpha``."""
        group = self.groups[0]
        number = float((self.log_alpha.detach() + bonus - _SHIFT).sigmoid().sum())
        return min((group.units, *group.smaller_widths), key=lambda width: abs(width - number))

    def likeliest(self, number: int) -> Tensor:
        """The mask of that many units, the likeliest ones, (units,)."""
        rank = self.log_alpha.detach().argsort(descending=True, stable=True).argsort()
        return (rank < number).to(self.log_alpha)

    def mask(self, i: int, axis: int) -> Callable[[Tensor], Tensor]:
        if axis == 0 and self.noise is not None:
            return lambda weight: weight
        # Once the search has ended the rows of closed units are 0 as well: what counts or rounds weights sees them.
        slices, value = next(slices for slices in self.slices[0] if slices.axis == axis), self.value()
        return lambda weight: weight * slices.spread(value, weight)

    def kept(self) -> Tensor:
        return self.left.sum() if self.noise is None else self.open().sum()

    @torch.no_grad()
    def hard(self, i: int = 0) -> Tensor:
        return self.value() > 0

    @torch.no_grad()
    def end(self, number: int) -> None:
        """End the search: keep the likeliest units, their gates' values multiplied into the weights that read them."""
        self.left.copy_(self.likeliest(number))
        for slices, weight in zip(self.slices[0], self.weights[0]):
            if slices.axis == 1:
                weight.mul_(slices.spread(torch.where(self.left > 0, self.still(), 1.0), weight))
        self.noise = None


@register(
    "l0",
    title="L0 (hard-concrete gates)",
    label="L0",
    colour="tab:purple",
    marker="^",
    variants={"": {}, "with conv": {"conv": True}},
)
class L0(Search):
    """Hard-concrete gates on whole units, pulled to a budget by an augmented Lagrangian.

    The loss gets ``m1 d + m2 d^2``, ``d`` being the budget that is expected to be saved less the target, and ``m1`` and
    ``m2`` learnt by ascent. With ``landing="hold"`` the search ends after ``reach_by`` of the run: one bonus on all
    ``log_alpha``, bisected, brings the numbers of units within the budget; blocks that still fit come back. With
    ``landing="free"`` it lasts to the end.

    Args:
        settings: keyword arguments of ``L0Settings``.
    """

    settings_class = L0Settings
    settings: L0Settings

    def __init__(self, **settings):
        super().__init__(**settings)
        self.found: float | None = None  # what the search had saved when this process ended it
        self.multipliers = nn.Parameter(torch.zeros(2))
        self.gated: GroupGates[HardConcreteGate]

    def put_gates(self, model: nn.Module) -> None:
        own = self.settings
        self.gated = GroupGates(
            model,
            own.layers,
            functools.partial(HardConcreteGate, drop_init=own.drop_init),
            structure=self.structure,
            conv=own.conv,
            multiple=own.multiple,
            macs=own.target_macs is not None,
            target=own.target,
        )
        self._draw()

    def new_parameters(self) -> list[nn.Parameter]:
        return [*(gate.log_alpha for gate in self.gated.gates.values()), self.multipliers]

    def new_lr(self, lr: float) -> float:
        return self.settings.gate_lr or lr

    @property
    def needs_penalty(self) -> bool:
        return not self.chosen

    # -- training

    def begin_step(self) -> None:
        self.multipliers.grad = None  # they are in no model whose zero_grad() would clear it

    def before_forward(self) -> None:
        self._draw()

    def _draw(self) -> None:
        if self.chosen:
            return
        generator = generator_of_step(self.seed, self.step)
        for gate in self.gated.gates.values():
            noise = torch.empty(len(gate.log_alpha)).uniform_(1e-6, 1 - 1e-6, generator=generator)
            gate.noise = noise.to(gate.log_alpha)

    @property
    def target_now(self) -> float:
        """The target, on its way up."""
        return self.settings.target * min(self.progress / self.settings.warmup, 1.0)

    def penalty(self) -> Tensor | float:
        """The Lagrangian, a scalar; of value 0, as its terms for descent and for ascent cancel out."""
        self._ask()
        if self.chosen:
            return self.no_penalty()
        saved = self.gated.budget.saved([gate.kept() for gate in self.gated.gates.values()])
        missed = saved - self.target_now
        terms = torch.stack([missed, missed.square()])
        return (self.multipliers.detach() * terms).sum() - (self.multipliers * terms.detach()).sum()

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        if not self.chosen and self.settings.landing == "hold" and self.progress >= self.settings.reach_by:
            self._choose()

    def _choose(self) -> None:
        """End the search within the budget, and so near that no further block of units fits."""
        gates, budget, target = list(self.gated.gates.values()), self.gated.budget, self.settings.target
        self.found = self.reached()

        def choice(charge: float) -> list[int]:
            return [gate.expected(-charge) for gate in gates]

        charge, _ = smallest_charge(lambda charge: budget.saved(choice(charge)) >= target)
        numbers = choice(charge)
        ranked = [gate.log_alpha.sort(descending=True).values.tolist() for gate in gates]
        while places := budget.room(numbers, target):
            nearest = max(places, key=lambda i: ranked[i][numbers[i]])
            numbers[nearest] = budget.wider(numbers, nearest)
        self._end(numbers)

    def _end(self, numbers: list[int] | None = None) -> None:
        """End the search with these numbers of units; without them the model computes what it did."""
        numbers = numbers or [gate.expected() for gate in self.gated.gates.values()]
        for gate, number in zip(self.gated.gates.values(), numbers):
            gate.end(number)
        self.chosen = True

    @torch.no_grad()
    def land(self) -> None:
        """End the search if it has not ended; of the mean of checkpoints, keep what all of them keep."""
        if self.chosen:
            for gate in self.gated.gates.values():
                gate.left.copy_(gate.left > 0.999)
        elif self.settings.landing == "hold":
            self._choose()
        else:
            self._end()

    # -- the state of the method

    def _numbers(self) -> list[float]:
        gates = self.gated.gates.values()
        return [float(n) for n in counts(gates)] if self.chosen else [float(gate.kept()) for gate in gates]

    @torch.no_grad()
    def reached(self) -> float:
        return self.gated.budget.saved(self._numbers())

    @torch.no_grad()
    def sparsity(self) -> float:
        """Overall sparsity: pruned weights over gated weights; its expectation while the search lasts."""
        return self.gated.weights.saved(self._numbers())

    def on_target(self) -> bool:
        if self.settings.landing == "free":
            return self.progress == 1  # no epoch before has what comes out
        return self.chosen and self.reached() >= self.settings.target

    def fell_short(self) -> bool:
        return not self.on_target() or self.reached() < self.settings.target

    def collapsed(self) -> dict[str, str]:
        if self.found is None or abs(self.found - self.settings.target) <= FAR:
            return {}
        saved, target = f"{100 * self.found:.1f}", f"{100 * self.settings.target:g}"
        advice = "raise l0.gate_lr" if self.found < self.settings.target else "lower l0.gate_lr"
        return {"l0": f"the search has ended at {saved} % of its {target} %; one common bonus did the rest: {advice}"}

    def scalars(self) -> dict[str, float]:
        more = {} if self.settings.target_macs is None else {"macs_saved": self.reached()}
        first, second = self.multipliers.tolist()
        return {"sparsity": self.sparsity(), **more, "multiplier_1": first, "multiplier_2": second}

    def layer_counts(self) -> dict[str, tuple[float, int]]:
        return self.gated.layer_counts()

    def group_widths(self) -> dict[str, Width]:
        return self.gated.group_widths()

    @torch.no_grad()
    def take_gates(self, model: nn.Module) -> dict[str, int]:
        if not self.chosen:
            self._end()
        widths = self.gated.fold(model)
        self.gated.gates.clear()
        return widths

    # -- resume

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        for gate in self.gated.gates.values():
            gate.noise = None
        self._draw()
