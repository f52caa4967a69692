"""The ``pruning:`` block of a YAML: the settings of every method, and their checks.

pruning:
    method: pinch
    target_sparsity: 0.65
    pinch: {eta: 2.0e-5, ...}      # settings of one method; those of the others may stand beside

"""

import dataclasses
import re
import reprlib
from collections.abc import Mapping
from numbers import Real

from espnet_pinch.core.attach import TRANSFORMER_LINEARS

# Fractions of the channels that the candidates of NAS-CP remove (arXiv 2505.22608, section 4).
CANDIDATES = (0.0, 0.25, 0.5, 0.75, 0.875, 0.9, 0.925)


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """What every method is told.

    Attributes:
        target_sparsity: fraction of the gated weights to prune, 0 <= x < 1.
        layers: regular expression of the names of the gated linear layers.
    """

    target_sparsity: float = 0.65
    layers: str = TRANSFORMER_LINEARS

    def __post_init__(self):
        check_target_sparsity(self.target_sparsity)
        if not isinstance(self.layers, str):
            raise ValueError(f"layers must be a regular expression, not {shown(self.layers)}")
        try:
            re.compile(self.layers)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"layers is not a regular expression: {error}") from None


@dataclasses.dataclass(frozen=True)
class DenseSettings(MethodSettings):
    """Attributes:
    channels: ``{layer: channels left}`` of a model folded to smaller matrices.
    """

    channels: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MagnitudeSettings(MethodSettings):
    """Settings of one-shot magnitude pruning.

    Attributes:
        layer_sparsities: ``{layer: sparsity}``, or the file or folder of a folded run to take them from; None for
            the target in every layer.
    """

    layer_sparsities: Mapping[str, float] | str | None = None


@dataclasses.dataclass(frozen=True)
class OnePassSettings(MethodSettings):
    """Settings of the methods that find the layers' sparsities while they train.

    Attributes:
        eta: weight of the penalty, or ``{from target: weight}`` where it depends on the target.
        tau_start, tau_end: temperature, cosine-annealed over the run.
        landing: "hold" ends on the target exactly; "paper" switches eta and does nothing else.
        reach_by: with "hold", the part of the run after which the target is reached at the latest; 0 < x <= 1.
    """

    eta: float | Mapping[float, float] = 0.0
    tau_start: float = 0.5
    tau_end: float = 0.01
    landing: str = "hold"
    reach_by: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        for name in ("tau_start", "tau_end"):
            check_number(name, getattr(self, name), above=0.0)
        if self.landing not in ("hold", "paper"):
            raise ValueError(f"landing must be 'hold' or 'paper', not {shown(self.landing)}")
        if check_number("reach_by", self.reach_by, above=0.0) > 1:
            raise ValueError(f"reach_by must be at most 1, not {self.reach_by}")
        if isinstance(self.eta, Mapping):
            for start, eta in self.eta.items():
                check_number("eta's key", start)
                check_number("eta", eta)
            if not any(start <= self.target_sparsity for start in self.eta):
                raise ValueError(f"eta has no entry for a target sparsity of {self.target_sparsity}: {dict(self.eta)}")
        else:
            check_number("eta", self.eta)

    @property
    def eta_for_target(self) -> float:
        if not isinstance(self.eta, Mapping):
            return float(self.eta)
        return float(self.eta[max(start for start in self.eta if start <= self.target_sparsity)])


@dataclasses.dataclass(frozen=True)
class PinchSettings(OnePassSettings):
    """Settings of the self-pinching gates; the defaults are the paper's values for a base model.

    Attributes:
        threshold_init: first value of every threshold.
        threshold_lr: learning rate of the thresholds; the weights' own where None.
    """

    eta: float | Mapping[float, float] = dataclasses.field(default_factory=lambda: {0.0: 2e-5, 0.65: 3e-5})
    threshold_init: float = 1e-5
    threshold_lr: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_number("threshold_init", self.threshold_init, above=0.0)
        if self.threshold_lr is not None:
            check_number("threshold_lr", self.threshold_lr, above=0.0)


@dataclasses.dataclass(frozen=True)
class NasSettings(OnePassSettings):
    """Settings of NAS-CP; the defaults are the paper's values for a base model.

    Attributes:
        architecture_lr: learning rate of the architecture weights; the weights' own where None.
    """

    eta: float | Mapping[float, float] = dataclasses.field(default_factory=lambda: {0.0: 4e-5, 0.75: 2e-4})
    architecture_lr: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.target_sparsity > CANDIDATES[-1]:
            raise ValueError(
                f"nas_cp cannot reach a target sparsity of {self.target_sparsity}: its candidates remove at most "
                f"{100 * CANDIDATES[-1]:g} % of the channels"
            )
        if self.architecture_lr is not None:
            check_number("architecture_lr", self.architecture_lr, above=0.0)


def check_target_sparsity(value) -> float:
    """``value`` if it is a fraction of at least 0 and under 1; otherwise ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < 1:
        raise ValueError(
            f"target_sparsity must be a number of at least 0 and under 1 (0.65 prunes 65 %), not {shown(value)}"
        )
    return float(value)


def check_number(name, value, above=None):
    """``value`` if it is a finite number of at least 0, or over ``above``; otherwise ValueError."""
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = ""
        if isinstance(value, str):
            hint = " (YAML reads 2e-5 as text: write 2.0e-5)"
        raise ValueError(f"{name} must be a number, not {shown(value)}{hint}")
    if not 0 <= value < 1e300 or (above is not None and value <= above):
        raise ValueError(
            f"{name} must be finite and {'over' if above is not None else 'at least'} 0, not {shown(value)}"
        )
    return value


def shown(value) -> str:
    """``value`` for an error line: one line, and short whatever it is."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    return reprlib.repr(value)


def check_keys(block: Mapping, known: set[str], where: str) -> None:
    """ValueError if ``block`` is no mapping or has a key that is not ``known``."""
    if not isinstance(block, Mapping):
        raise ValueError(f"{where} must be a mapping of settings, not {shown(block)}")
    unknown = sorted(str(key) for key in set(block) - known)
    if unknown:
        raise ValueError(f"unknown setting {shown(unknown[0])} in {where}; it takes: {', '.join(sorted(known))}")
