"""The gates of whole heads, channels and filters: one learnable threshold for each group of them.

The score of a unit is the mean square of all of its weights, over the mean of its group before the training, so that
the groups of a network share a scale. Units are pruned as the paper prunes weights (arXiv 2505.22608, section 2), with
the score in place of ``W^2``. No paper has done this.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from espnet_pinch.core.gate import kept_units, masked_weight
from espnet_pinch.core.group_gates import GroupGate, GroupGates, counts, unchanged
from espnet_pinch.core.score import Units
from espnet_pinch.core.thresholds import WithThreshold, new_threshold
from espnet_pinch.core.units import Cost, Group
from espnet_pinch.errors import UserError


class _MeanSquares(torch.autograd.Function):
    """The mean square of the weights of each unit, over ``scale``: (units).

    Autograd may free nothing of it, so that several backward passes, each of a graph of its own, share the scores.
    """

    @staticmethod
    def forward(ctx, slices, scale, *weights):
        ctx.slices, ctx.weights, ctx.versions = slices, weights, _versions(weights)
        squares = torch.stack([of.gather(weight.square()) for of, weight in zip(slices, weights)]).sum(0)
        ctx.divisor = sum(weight.numel() for weight in weights) // len(squares) * scale
        return squares / ctx.divisor

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        unchanged(ctx.versions == _versions(ctx.weights))
        grad = grad / ctx.divisor
        return None, None, *(of.spread(grad, weight) * (2 * weight) for of, weight in zip(ctx.slices, ctx.weights))


class UnitGate(WithThreshold, GroupGate):
    """The self-pinching gate of a group, or of several: one threshold for all of them.

    How many units are kept is rounded up to the group's ``multiple``: the largest of those under the threshold stay.
    Of several groups, the scores are ranked in each, and the mean of each rank is compared with the threshold.

    Args:
        groups, weights: as for ``GroupGate``.
        threshold: initial value of the threshold.
        tau: temperature of the soft mask, > 0.
        targets: number of thresholds.
    """

    scale: Tensor
    frozen: Tensor

    def __init__(
        self,
        groups: Sequence[Group],
        weights: Sequence[Sequence[Tensor]],
        threshold: float = 1e-5,
        tau: float = 0.5,
        targets: int = 1,
    ):
        super().__init__(groups, weights)
        self.tau = tau
        self.threshold = new_threshold(weights[0][0], threshold, targets)
        self._scored: tuple[tuple, list[Tensor]] | None = None  # versions of the weights, and their units' scores
        self._chosen: tuple[tuple, list[Units]] | None = None  # versions of what chooses, and what it has chosen
        self.register_buffer("scale", torch.ones_like(self.current))
        # Of each target and group the units that are kept from then on: 1, 0 for the others; 0 for all before.
        self.register_buffer("frozen", self.scale.new_zeros(targets, len(groups), groups[0].units))
        self.prior: Tensor | None = None  # of the units of each group; the higher are kept first, whatever their scores
        self.bounds = 0, groups[0].units  # the fewest and the most units that the threshold may leave
        with torch.no_grad():
            mean = torch.stack([units.scores for units in self.units()]).mean()
            self.scale.copy_(torch.where(mean > 0, mean, 1.0))  # of a group without weights too
        self.forget()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_scored": None, "_chosen": None}  # tensors in a graph cannot be copied

    def forget(self) -> None:
        """Score and choose anew: the weights have changed."""
        self._scored = self._chosen = None

    def units(self) -> list[Units]:
        """The units of each group; their scores are differentiable."""
        weights = _versions(weight for of_group in self.weights for weight in of_group)
        weights += (torch.is_inference_mode_enabled(),)  # where nothing has a graph
        if self._scored is None or self._scored[0] != weights:
            with torch.enable_grad():
                scores = [_MeanSquares.apply(of, self.scale, *w) for of, w in zip(self.slices, self.weights)]
            self._scored, self._chosen = (weights, scores), None
        choosing = _versions((self.current, self.frozen))
        if self._chosen is None or self._chosen[0] != choosing:
            scores = self._scored[1]
            frozen = self.frozen[self.in_use] > 0.5
            kept = frozen if not frozen.is_meta and frozen.any() else self._over([s.detach() for s in scores])
            self._chosen = choosing, [Units(s, mask) for s, mask in zip(scores, kept)]
        return self._chosen[1]

    def _over(self, scores: list[Tensor]) -> list[Tensor]:
        """The units of each group whose scores the threshold leaves: boolean masks, (units) each."""
        orders = [s.argsort(descending=True, stable=True) for s in scores]
        if self.prior is not None:
            orders = [o[p[o].argsort(descending=True, stable=True)] for o, p in zip(orders, self.prior)]
        ranks = [order.argsort() for order in orders]  # 0 for the unit that is kept longest
        ranked = torch.stack([s.sort(descending=True).values for s in scores]).mean(0)
        left = self._left(ranked, self.current.detach())
        return [rank < left for rank in ranks]

    def _left(self, ranked: Tensor, threshold: Tensor) -> Tensor:
        """The number of units to keep, a scalar, from the scores in falling order."""
        group = self.groups[0]
        left = (ranked >= threshold.square()).sum().clamp(min=1)
        return ((left + group.multiple - 1) // group.multiple * group.multiple).clamp(*self.bounds)

    def mask(self, i: int, axis: int) -> Callable[[Tensor], Tensor]:
        slices = next(slices for slices in self.slices[i] if slices.axis == axis)
        threshold, tau, units = self.current, self.tau, self.units()[i]
        return lambda weight: masked_weight(weight, threshold, tau, slices, units)

    def kept(self) -> Tensor:
        counts = [kept_units(None, self.current, self.tau, self.slices[0][0], units) for units in self.units()]
        return torch.stack(counts).mean()

    @torch.no_grad()
    def hard(self, i: int = 0) -> Tensor:
        return self.units()[i].kept

    @torch.no_grad()
    def trained(self) -> Tensor:
        """As above; of a frozen target, the threshold that leaves as many units: since then the scores have changed."""
        found, ranked = super().trained().clone(), self.ranked()
        for place, masks in enumerate(self.frozen):
            left = int(masks[0].sum())
            if left and ranked[left - 1]:
                found[place] = _between(ranked, left)
        return found

    def restart(self, threshold: Tensor, below: int | None, above: int | None) -> None:
        """As above; units that the targets until now keep are kept before others, their numbers bound the new one."""
        super().restart(threshold, below, above)
        self.prior = self.frozen.sum(0)  # targets are nested
        numbers = self.frozen[:, 0].sum(-1).int().tolist()  # 0 of a target that was not frozen
        fewest = 0 if above is None else numbers[above]
        self.bounds = fewest, (0 if below is None else numbers[below]) or self.groups[0].units
        self.frozen = torch.zeros_like(self.frozen[:1])

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep the units that the target in use keeps now, whatever becomes of their scores."""
        self.frozen[self.in_use] = torch.stack([units.kept for units in self.units()]).to(self.frozen)

    @torch.no_grad()
    def ranked(self) -> Tensor:
        """What is compared with the threshold's square, in falling order, (units)."""
        return torch.stack([units.scores.sort(descending=True).values for units in self.units()]).mean(0)

    @torch.no_grad()
    def fewest(self) -> int:
        """The number of units that the next target keeps, which the target in use keeps too; 0 without a next one."""
        return 0 if self.next is None else int(self._left(self.ranked(), self.next))


def _versions(tensors: Iterable[Tensor]) -> tuple:
    """What is another one once a tensor is written to, moves, or is frozen."""
    return tuple((tensor._version, tensor.data_ptr(), tensor.requires_grad) for tensor in tensors)


def _between(ranked: Tensor, left: int) -> Tensor:
    """The threshold that just so many scores reach, of scores in falling order: between two, on a scale of ratios."""
    around = ranked[left - 1 : left + 1]
    return around.prod().pow(0.25) if len(around) == 2 and around[1] else around[0].sqrt() * (1 - 1e-6)


@torch.no_grad()
def land(gates: Sequence[UnitGate], cost: Cost, target: float) -> None:
    """Multiply every threshold by one common factor, so that just the fraction ``target`` of the cost is saved.

    A block is as many units of a group as its ``multiple`` says. One factor for all keeps what training found: the
    ratios of the groups' thresholds. A large block may go where a smaller one would have been enough. Then the blocks
    next to their thresholds come back, as far as they fit: no further block does.

    Args:
        gates: in the order of ``cost``.
        target: 0 <= target < 1.

    Raises:
        UserError: no factor saves so much: every group keeps some units, or a threshold is 0 or not finite.
    """
    most = [gate.bounds[1] for gate in gates]
    events = []  # (the square of the factor over which a group loses its next block, place of the group, units left)
    for i, gate in enumerate(gates):
        ratios, fewest = (gate.ranked().double() / gate.current.double().square()).tolist(), gate.fewest()
        fewest = max(fewest, gate.bounds[0])
        events += [(ratios[left], i, left) for left in gate.groups[0].smaller_widths if fewest <= left < most[i]]
    events.sort(key=lambda event: (event[0], event[1], -event[2]))  # of units that are alike, one block after another

    def kept(number: int) -> list[int]:
        left = list(most)
        for _, i, n in events[:number]:
            left[i] = n
        return left

    low, high = 0, len(events)
    if not all(math.isfinite(ratio) for ratio, _, _ in events):
        raise UserError("a threshold is 0 or not finite")
    if cost.saved(kept(high)) < target:
        raise UserError(
            f"{100 * target:.2f} % of the unpruned model's cost cannot be saved: with the fewest units it saves "
            f"{100 * cost.saved(kept(high)):.2f} %"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost.saved(kept(middle)) >= target else (middle + 1, high)
    high = max(high, sum(ratio == 0 for ratio, _, _ in events))  # every threshold prunes units without weights
    below = events[high - 1][0] if high else 0.0
    above = events[high][0] if high < len(events) else 4 * below or 4.0
    factor = ((below or above / 4) * above) ** 0.25  # between the two, on a scale of ratios
    for _ in range(100):
        for gate in gates:
            gate.current.copy_(gate.times(factor))
        if cost.saved(counts(gates)) >= target:
            break
        factor = 1 + 1e-6  # two events closer than the numbers can tell
    _give_back(gates, cost, target)


def _give_back(gates: Sequence[UnitGate], cost: Cost, target: float) -> None:
    """Lower single thresholds until no further block may come back: blocks differ much in size."""
    stuck: set[int] = set()  # gates with units that are too much alike
    while True:
        left, best = counts(gates), None
        for i in cost.room(left, target):
            if i not in stuck:
                ranked = gates[i].ranked()
                if not ranked[left[i]]:  # a block without weights; no threshold keeps it
                    stuck.add(i)
                    continue
                nearness = float(ranked[left[i]] / gates[i].current.square())
                if best is None or nearness > best[0]:
                    best = nearness, i, _between(ranked, left[i] + 1)
        if best is None:
            return
        _, i, threshold = best
        before = gates[i].current.clone()
        gates[i].current.copy_(threshold)
        if counts(gates) == left or cost.saved(counts(gates)) < target:
            gates[i].current.copy_(before)
            stuck.add(i)


class UnitGates(GroupGates[UnitGate]):
    """Self-pinching gates over the units of a model.

    Args:
        threshold: initial value of every threshold.
        targets: number of thresholds of each gate.
        options: as for ``GroupGates``.
    """

    freezes = True

    def __init__(self, model: nn.Module, layers: str, threshold: float, targets: int = 1, **options):
        super().__init__(model, layers, functools.partial(UnitGate, threshold=threshold, targets=targets), **options)

    def land(self, target: float) -> None:
        """As ``land``, on a fraction of the budget."""
        land(list(self.gates.values()), self.budget, target)

    def freeze(self) -> None:
        """Keep the units that the target in use keeps now, to the end of the run."""
        for gate in self.gates.values():
            gate.freeze()

    def frozen(self) -> bool:
        """Whether ``freeze`` has been called for the target in use."""
        return bool(torch.stack([gate.frozen[gate.in_use].any() for gate in self.gates.values()]).all())

    def overshoots(self, target: float) -> bool:
        """Whether more is saved than the target needs: a block of units may come back."""
        return bool(self.budget.room(counts(self.gates.values()), target))

    def collapsed(self) -> dict[str, str]:
        """The groups that would keep fewer units than they must."""
        found = {}
        for name, gate in self.gates.items():
            group, left = gate.groups[0], int(gate.hard().sum())
            over = int((gate.ranked() >= gate.current.square()).sum())
            if over < group.fewest == left:
                found[name] = f"the threshold leaves {over} of {group.units} {group.kind}; {left} are held, the fewest"
        return found
