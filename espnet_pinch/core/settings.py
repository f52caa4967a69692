"""The ``pruning:`` block of a YAML: settings, their checks, and the method they name."""

import dataclasses
from collections.abc import Mapping
from numbers import Real

from espnet_pinch.core.attach import TRANSFORMER_LINEARS


@dataclasses.dataclass(frozen=True)
class PinchSettings:
    """Settings of the self-pinching gates; the defaults are the paper's values for a base model.

    Attributes:
        target_sparsity: fraction of the gated weights to prune, 0 <= x < 1.
        layers: regular expression of the names of the gated linear layers.
        eta: weight of the penalty, or ``{from target: weight}`` where it depends on the target.
        threshold_init: first value of every threshold.
        threshold_lr: learning rate of the thresholds; the weights' own where None.
        tau_start, tau_end: temperature of the soft mask, cosine-annealed over the run.
        landing: "hold" keeps the sparsity on the target from the moment it is reached, and sees to it that it is
            reached after the part ``reach_by`` of the run; "paper" switches eta and does nothing else.
        reach_by: see ``landing``; 0 < x <= 1.
    """

    target_sparsity: float = 0.65
    layers: str = TRANSFORMER_LINEARS
    eta: float | Mapping[float, float] = dataclasses.field(default_factory=lambda: {0.0: 2e-5, 0.65: 3e-5})
    threshold_init: float = 1e-5
    threshold_lr: float | None = None
    tau_start: float = 0.5
    tau_end: float = 0.01
    landing: str = "hold"
    reach_by: float = 0.5

    def __post_init__(self):
        check_target_sparsity(self.target_sparsity)
        for name in ("threshold_init", "tau_start", "tau_end"):
            _check_number(name, getattr(self, name), above=0.0)
        if self.threshold_lr is not None:
            _check_number("threshold_lr", self.threshold_lr, above=0.0)
        if self.landing not in ("hold", "paper"):
            raise ValueError(f"landing must be 'hold' or 'paper', not {self.landing!r}")
        if _check_number("reach_by", self.reach_by, above=0.0) > 1:
            raise ValueError(f"reach_by must be at most 1, not {self.reach_by}")
        if isinstance(self.eta, Mapping):
            for start, eta in self.eta.items():
                _check_number("eta's key", start)
                _check_number("eta", eta)
            if not any(start <= self.target_sparsity for start in self.eta):
                raise ValueError(f"eta has no entry for a target sparsity of {self.target_sparsity}: {dict(self.eta)}")
        else:
            _check_number("eta", self.eta)

    @property
    def eta_for_target(self) -> float:
        if not isinstance(self.eta, Mapping):
            return float(self.eta)
        return float(self.eta[max(start for start in self.eta if start <= self.target_sparsity)])


def check_target_sparsity(value) -> float:
    """``value`` if it is a fraction of at least 0 and under 1; otherwise ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1:
        raise ValueError(
            f"target_sparsity must be a number of at least 0 and under 1 (0.65 prunes 65 %), not {value!r}"
        )
    return float(value)


def _check_number(name, value, above=None):
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = ""
        if isinstance(value, str):
            hint = " (YAML reads 2e-5 as text: write 2.0e-5)"
        raise ValueError(f"{name} must be a number, not {value!r}{hint}")
    if value < 0 or (above is not None and value <= above):
        raise ValueError(f"{name} must be {'over' if above is not None else 'at least'} 0, not {value}")
    return value


def settings_from(cls, block: Mapping):
    """The settings object ``cls`` of a YAML block; ValueError names a key it does not know."""
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(block) - known)
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r} in the pruning block; it takes: {', '.join(sorted(known))}")
    return cls(**block)
