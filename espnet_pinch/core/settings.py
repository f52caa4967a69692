"""The ``pruning:`` block of a YAML: the settings that all methods share, and the checks of settings.

pruning:
    method: pinch
    target_sparsity: 0.65
    pinch: {eta: 2.0e-5, ...}      # settings of one method; the block may have those of other methods too

"""

import dataclasses
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import ClassVar, cast

from espnet_pinch.core.attach import TRANSFORMER_LINEARS
from espnet_pinch.errors import UserError

SMALLEST, LARGEST = 1e-18, 1e18  # of a setting that is not 0
MOST = 10**9  # of a count


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """Settings that all methods share.

    Attributes:
        target_sparsity: fraction of the gated weights to prune, 0 <= x < 1; None with ``target_macs``. For a method
            that takes several targets, a list of them that rises, each over 0.
        target_macs: fraction of the whole model's multiplications to save, 0 <= x < 1, for a method that prunes whole
            units; None with ``target_sparsity``. Or a list, likewise.
        layers: regular expression that the names of the gated linear layers match.
    """

    takes_macs: ClassVar[bool] = False  # whether the target may be one of multiplications
    takes_several: ClassVar[bool] = False  # whether one run may have several targets

    target_sparsity: float | Sequence[float] | None = 0.65
    target_macs: float | Sequence[float] | None = None
    layers: str = TRANSFORMER_LINEARS

    @property
    def targets(self) -> tuple[float, ...]:
        """The targets, fractions that rise, of whichever kind is given."""
        given = self.target_macs if self.target_sparsity is None else self.target_sparsity
        return tuple(given) if isinstance(given, Sequence) else (cast(float, given),)

    @property
    def target(self) -> float:
        """The target, or the highest of several."""
        return self.targets[-1]

    def __post_init__(self):
        if (self.target_sparsity is None) == (self.target_macs is None):
            raise UserError(
                "give target_sparsity or target_macs, "
                + (
                    "one of them"
                    if self.target_macs is None
                    else f"not both ({self.target_sparsity}, {self.target_macs})"
                )
            )
        name = "target_macs" if self.target_sparsity is None else "target_sparsity"
        given = check_targets(getattr(self, name), name)
        object.__setattr__(self, name, given)
        if isinstance(given, tuple) and not self.takes_several:
            raise UserError(f"{name} has {len(given)} targets, which needs method: pinch; other methods take one")
        if self.target_macs is not None and not self.takes_macs:
            raise UserError("target_macs needs a method that prunes whole units, such as pinch.unit: structured")
        if not isinstance(self.layers, str):
            raise UserError(f"layers must be a regular expression, not {shown(self.layers)}")
        try:
            re.compile(self.layers)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"layers is not a regular expression: {error}") from None


def check_target_sparsity(value, name: str = "target_sparsity") -> float:
    """``value`` if it is a number of at least 0 and under 1; raises UserError otherwise."""
    if not _is_number(value) or not 0 <= value < 1:
        raise UserError(f"{name} must be a number of at least 0 and under 1 (0.65 prunes 65 %), not {shown(value)}")
    return float(value)


def check_targets(value, name: str = "target_sparsity") -> float | tuple[float, ...]:
    """A target, or several: a list of one is that one.

    Raises:
        UserError: a target is out of its range, or the list is empty, does not rise, or has a 0.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return check_target_sparsity(value, name)
    targets = tuple(check_target_sparsity(target, f"each {name}") for target in value)
    if not targets:
        raise UserError(f"{name} is an empty list")
    if len(targets) == 1:
        return targets[0]
    if targets[0] == 0 or any(a >= b for a, b in zip(targets, targets[1:])):
        right = ", ".join(f"{target:g}" for target in sorted({*targets} - {0.0}))
        raise UserError(f"{name}: several targets must rise, each over 0: [{right}], not {shown(list(value))}")
    return targets


def check_number(name, value, above=None):
    """``value`` if it is finite, at least 0, and over ``above`` if that is given; raises UserError otherwise.

    A number that float32 cannot hold with its square, or only as 0, is refused too.
    """
    if not _is_number(value):
        hint = ""
        if isinstance(value, str):
            hint = " (YAML reads 2e-5 as text: write 2.0e-5)"
        raise UserError(f"{name} must be a number, not {shown(value)}{hint}")
    if not 0 <= value < math.inf or (above is not None and value <= above):
        raise UserError(
            f"{name} must be finite and {'over' if above is not None else 'at least'} 0, not {shown(value)}"
        )
    if value and not SMALLEST <= value <= LARGEST:
        raise UserError(f"{name} must be from {SMALLEST} to {LARGEST:g}, not {shown(value)}")
    return value


def check_flag(name, value):
    """Raise UserError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, not {shown(value)}")


def check_count(name, value):
    """Raise UserError unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
        raise UserError(f"{name} must be a whole number from 1 to {MOST}, not {shown(value)}")


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def shown(value) -> str:
    """``value`` as short text on one line, for error messages."""
    if isinstance(value, int) and abs(value) >= 10**40:
        return "a number of more than 40 digits"
    return reprlib.repr(value)


def check_keys(block: Mapping, known: set[str], where: str) -> None:
    """Raise UserError if ``block`` is not a mapping or has a key that is not in ``known``."""
    if not isinstance(block, Mapping):
        raise UserError(f"{where} must be a mapping of settings, not {shown(block)}")
    unknown = sorted(str(key) for key in set(block) - known)
    if unknown:
        raise UserError(f"unknown setting {shown(unknown[0])} in {where}; it takes: {', '.join(sorted(known))}")
