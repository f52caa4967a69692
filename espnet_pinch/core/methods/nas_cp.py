"""NAS-CP: channel-wise pruning by architecture search, a baseline of arXiv 2505.22608 (section 4).

Every gated layer chooses among seven candidate masks. They remove {0, 25, ... 92.5} % of its channels: those with the
smallest L2 norm, summed over the layers that share the channel. The masked weight is ``sum_i lambda_i M_i * W``, where
``lambda`` is a Gumbel-softmax over the layer's seven architecture weights. The loss gets
``eta * sum_l sum_i lambda_i |M_i|_0``. Removing a row removes its bias too, so that the channel is 0.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_pinch.core.attach import find_linears, replace_module
from espnet_pinch.core.channels import find_channels
from espnet_pinch.core.method import cosine, generator_of_step
from espnet_pinch.core.one_pass import OnePassMethod, OnePassSettings
from espnet_pinch.core.registry import register
from espnet_pinch.core.score import Slices
from espnet_pinch.core.search import Search, smallest_charge
from espnet_pinch.core.settings import check_number
from espnet_pinch.errors import UserError

# Fractions of the channels that the candidates remove (arXiv 2505.22608, section 4).
CANDIDATES = (0.0, 0.25, 0.5, 0.75, 0.875, 0.9, 0.925)


@dataclasses.dataclass(frozen=True)
class NasSettings(OnePassSettings):
    """Settings of NAS-CP; the defaults are the paper's values for a base model.

    Attributes:
        architecture_lr: learning rate of the architecture weights; None means that of the model's weights.
    """

    eta: float | Mapping[float, float] = dataclasses.field(default_factory=lambda: {0.0: 4e-5, 0.75: 2e-4})
    architecture_lr: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.target > CANDIDATES[-1]:
            raise UserError(
                f"nas_cp cannot reach a target sparsity of {self.target}: its candidates remove at most "
                f"{100 * CANDIDATES[-1]:g} % of the channels"
            )
        if self.architecture_lr is not None:
            check_number("architecture_lr", self.architecture_lr, above=0.0)


class ChannelGate(nn.Module):
    """A linear layer that scales its channels (its rows, or its columns): 1 keeps a channel, 0 removes it.

    ``weight`` and ``bias`` are scaled, for code that reads them instead of calling the layer.
    """

    kept: Tensor

    def __init__(self, linear: nn.Linear, columns: bool):
        super().__init__()
        self.columns = columns
        self.slices = Slices(axis=1 if columns else 0)
        self.weight_orig = linear.weight  # (out, in)
        self.bias_orig = linear.bias  # (out,)
        self.channels = linear.in_features if columns else linear.out_features
        self.per_channel = linear.weight.numel() // self.channels  # weights of one channel
        # Rounded up, so that every width can reach a target of 92.5 %.
        self.removed = [math.ceil(fraction * self.channels - 1e-6) for fraction in CANDIDATES]
        self.architecture = nn.Parameter(linear.weight.new_zeros(len(CANDIDATES)))  # (7,)
        # How much of each channel is kept: its expected value during the search, 0 or 1 after it.
        self.register_buffer("kept", linear.weight.new_ones(self.channels))
        self.mixture: Tensor | None = None  # (channels,) the sampled candidates, in training during the search

    def __getstate__(self) -> dict:
        return {**self.__dict__, "mixture": None}  # a tensor in a graph cannot be copied

    @property
    def scale(self) -> Tensor:
        return self.kept if self.mixture is None or not self.training else self.mixture

    @property
    def weight(self) -> Tensor:
        return self.weight_orig * (self.scale if self.columns else self.scale[:, None])

    @property
    def bias(self) -> Tensor:
        return self.bias_orig if self.columns else self.bias_orig * self.scale

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return F.linear(x, self.weight, self.bias)

    def mix(self, weights: Tensor, ranks: Tensor) -> Tensor:
        """The weighted sum of the candidates' masks: weights (7,), channel ranks (channels,) -> (channels,)."""
        masks = ranks >= torch.tensor(self.removed, device=ranks.device)[:, None]  # (7, channels)
        return (weights[:, None] * masks).sum(0)  # not a matrix product: autocast would use half precision for it

    def norms(self) -> Tensor:
        """L2 norm of every channel's weights, (channels,)."""
        return self.slices.gather(self.weight_orig.square()).sqrt()

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """An ``nn.Linear`` with zeros in the removed channels."""
        rows, columns = self.weight_orig.shape
        linear = nn.Linear(columns, rows, device="meta")
        linear.weight, linear.bias = nn.Parameter(self.weight.clone()), nn.Parameter(self.bias.clone())
        return linear.train(self.training)


@register(
    "nas_cp",
    title="NAS-CP",
    label="NAS-CP",
    colour="tab:red",
    marker="v",
    most=CANDIDATES[-1],
)
class NasChannels(Search, OnePassMethod):
    """One-pass channel pruning by architecture search.

    In training a Gumbel-softmax mixes every layer's candidates; in evaluation a plain softmax does. ``eta`` is 0 while
    the sparsity that the plain softmax gives meets the target.

    The paper does not say how a search ends, nor how it ends on the target. With ``landing="hold"`` the search takes
    the fraction ``reach_by`` of the run, and the temperature goes through its whole course in that time. Then every
    layer takes its likeliest candidate, with a bonus for every pruned weight. The bonus is common to all layers and is
    found by bisection, so that they meet the target together. The last layers that the bonus changes remove only as
    many channels as are missing. If one layer removes a channel, the channel has no effect in its partner
    (``Channels.pairs``), so the partner removes it too: no kept weight is without effect. The rest of the run
    fine-tunes the chosen model. With ``landing="paper"`` the search lasts to the end of the run, and every layer takes
    its likeliest candidate without a bonus.

    Args:
        settings: keyword arguments of ``NasSettings``.
    """

    settings_class = NasSettings
    settings: NasSettings
    structured = True

    def __init__(self, **settings):
        super().__init__(**settings)
        self.gates: dict[str, ChannelGate] = {}  # not submodules: the model holds them and saves their parameters
        self.groups: list[list[ChannelGate]] = []
        self._ranks_of_step: list[Tensor] = []  # of the channels of each group, as the step began

    def put_gates(self, model: nn.Module) -> None:
        """Gate every matching layer; raises UserError if none matches or a layer's channels are not tied."""
        linears = find_linears(model, self.settings.layers)
        for group in find_channels(linears, self.structure.ties):
            for name in group.members:
                self.gates[name] = ChannelGate(linears[name], columns=name == group.column)
                replace_module(model, name, self.gates[name])
            self.groups.append([self.gates[name] for name in group.members])

    def new_parameters(self) -> list[nn.Parameter]:
        return [gate.architecture for gate in self.gates.values()]

    def new_lr(self, lr: float) -> float:
        return self.settings.architecture_lr or lr

    @property
    def tau(self) -> float:
        """Temperature of the Gumbel-softmax."""
        part = self.settings.reach_by if self.settings.landing == "hold" else 1.0
        return cosine(self.settings.tau_start, self.settings.tau_end, min(self.progress / part, 1.0))

    @property
    def eta(self) -> float:
        """The current weight of the penalty: 0 while the target is met."""
        met = self.chosen or self.sparsity() >= self.settings.target
        return 0.0 if met else self.settings.eta_for_target

    # -- training

    def begin_step(self) -> None:
        self._ranks_of_step = [self._ranks(group) for group in self.groups]

    def before_forward(self) -> None:
        if not self.chosen:
            for gate, mixture in zip(self.gates.values(), self._mixtures()):
                gate.mixture = mixture

    def penalty(self) -> Tensor | float:
        """``eta * sum_l sum_i lambda_i |M_i|_0``, a scalar; 0.0 while the target is met."""
        self._ask()
        if self.chosen:
            return self.no_penalty()
        eta = self.eta
        if not eta:
            return 0.0
        counts = [mixture.sum() * gate.per_channel for gate, mixture in zip(self.gates.values(), self._mixtures())]
        return eta * torch.stack(counts).sum()

    def _mixtures(self) -> list[Tensor]:
        """The sampled candidates of every gate, (channels,) each.

        All forward passes and penalties of a step get the same values, each in a graph of its own.
        """
        noise = iter(self._noise())
        return [
            gate.mix(((gate.architecture + next(noise)) / self.tau).softmax(0), ranks)
            for group, ranks in zip(self.groups, self._ranks_of_step)
            for gate in group
        ]

    def _noise(self) -> Tensor:
        """Gumbel noise of this step, (layers, 7)."""
        generator = generator_of_step(self.seed, self.step)
        exponential = torch.empty(len(self.gates), len(CANDIDATES)).exponential_(generator=generator)
        return -exponential.log().to(self.new_parameters()[0])

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        if self.chosen:
            return
        if self.settings.landing == "hold" and self.progress >= self.settings.reach_by:
            self._choose()
        else:
            for group in self.groups:
                ranks = self._ranks(group)
                for gate in group:
                    gate.kept.copy_(gate.mix(gate.architecture.softmax(0), ranks))

    @staticmethod
    @torch.no_grad()
    def _ranks(group: list[ChannelGate]) -> Tensor:
        """Rank of every channel by its summed norm, 0 for the smallest, (channels,)."""
        return functools.reduce(torch.add, (gate.norms() for gate in group)).argsort(stable=True).argsort()

    # -- the choice

    @torch.no_grad()
    def _choose(self) -> None:
        """End the search on the target, to within one channel of a pair of layers."""
        gates = list(self.gates.values())
        scores = torch.stack([gate.architecture.double().cpu() for gate in gates])  # (layers, 7)
        pruned = torch.tensor([[n * gate.per_channel for n in gate.removed] for gate in gates]).double()
        pairs = list(zip(gates[::2], gates[1::2]))
        weights = [one.per_channel + other.per_channel for one, other in pairs]  # weights of one channel of each pair

        def choice(bonus: float) -> list[int]:
            """Number of channels that each pair removes: the larger number of its two layers' candidates."""
            index = (scores + bonus * pruned).argmax(1).view(-1, 2).amax(1)
            return [one.removed[i] for (one, _), i in zip(pairs, index.tolist())]

        def missing(channels: list[int]) -> float:
            return self.settings.target * self._total() - sum(n * w for n, w in zip(channels, weights))

        high, low = smallest_charge(lambda bonus: missing(choice(bonus)) <= 0)
        channels = choice(low)
        for i, most in enumerate(choice(high)):
            more = math.ceil(missing(channels) / weights[i])
            channels[i] += min(most - channels[i], max(more, 0))
        self._remove([n for n in channels for _ in range(2)])

    @torch.no_grad()
    def _remove(self, removed: list[int]) -> None:
        """End the search, with ``removed`` channels removed from each layer."""
        left = iter(removed)
        for group in self.groups:
            ranks = self._ranks(group)
            for gate in group:
                gate.kept.copy_(ranks >= next(left))
                gate.mixture = None
        self.chosen = True

    @torch.no_grad()
    def land(self) -> None:
        """End the search if it has not ended. In a mean of checkpoints, remove every channel that one had removed."""
        if self.chosen:
            for gate in self.gates.values():
                gate.kept.copy_(gate.kept > 0.999)
        elif self.settings.landing == "hold":
            self._choose()
        else:
            self._remove([gate.removed[int(gate.architecture.argmax())] for gate in self.gates.values()])

    # -- the state of the method

    def _total(self) -> int:
        return sum(gate.weight_orig.numel() for gate in self.gates.values())

    def sparsity(self) -> float:
        """Overall sparsity: pruned weights over gated weights; its expected value during the search."""
        kept = [gate.kept.double().sum() * gate.per_channel for gate in self.gates.values()]
        return (self._total() - float(torch.stack(kept).sum())) / self._total()

    def on_target(self) -> bool:
        over = self.sparsity() >= self.settings.target
        return over and (self.chosen or self.settings.landing == "paper")

    def layer_counts(self) -> dict[str, tuple[float, int]]:
        return {
            name: (float((gate.channels - gate.kept.double().sum()) * gate.per_channel), gate.weight_orig.numel())
            for name, gate in self.gates.items()
        }

    def take_gates(self, model: nn.Module) -> dict[str, int]:
        for name, gate in self.gates.items():
            replace_module(model, name, gate.fold())
        self.gates.clear()
        self.groups.clear()
        return {}
