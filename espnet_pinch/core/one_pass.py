"""The base of one-pass methods, which find the layers' sparsities during training, with a penalty and a temperature."""

import dataclasses
from collections.abc import Mapping

from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.settings import MethodSettings, check_number, shown
from espnet_pinch.errors import UserError


@dataclasses.dataclass(frozen=True)
class OnePassSettings(MethodSettings):
    """Settings that all one-pass methods share.

    Attributes:
        eta: weight of the penalty, or ``{lowest target: weight}`` if it depends on the target sparsity.
        tau_start, tau_end: temperature, cosine-annealed over the run or, in NAS-CP with "hold", over the search.
        landing: "hold" ends exactly on the target; "paper" only sets eta to 0 while the target is met.
        reach_by: with "hold", the fraction of the run by which the target is reached; 0 < x <= 1.
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
            raise UserError(f"landing must be 'hold' or 'paper', not {shown(self.landing)}")
        if check_number("reach_by", self.reach_by, above=0.0) > 1:
            raise UserError(f"reach_by must be at most 1, not {self.reach_by}")
        if isinstance(self.eta, Mapping):
            for start, eta in self.eta.items():
                check_number("eta's key", start)
                check_number("eta", eta)
            if not any(start <= self.target for start in self.eta):
                raise UserError(f"eta has no entry for a target of {self.target}: {dict(self.eta)}")
        else:
            check_number("eta", self.eta)

    @property
    def eta_for_target(self) -> float:
        if not isinstance(self.eta, Mapping):
            return float(self.eta)
        return float(self.eta[max(start for start in self.eta if start <= self.target)])


class OnePassMethod(PruningMethod):
    """A method with a penalty of weight ``eta`` and a temperature ``tau`` that falls over the run."""

    needs_total_steps = True
    advice = "; raise eta, or set landing: hold, to reach it"

    @property
    def tau(self) -> float:
        """The current temperature."""
        raise NotImplementedError

    @property
    def eta(self) -> float:
        """The current weight of the penalty: 0 while the target is met."""
        raise NotImplementedError

    @property
    def needs_penalty(self) -> bool:
        return self.eta > 0

    def scalars(self) -> dict[str, float]:
        return {"sparsity": self.sparsity(), "tau": self.tau, "eta": self.eta}
