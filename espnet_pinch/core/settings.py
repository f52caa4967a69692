"""The ``pruning:`` block of a YAML: the settings that all methods share, and the checks of settings.

pruning:
    method: pinch
    target_sparsity: 0.65
    pinch: {eta: 2.0e-5, ...}      # settings of one method; the block may have those of other methods too

"""

import dataclasses
import re
import reprlib
from collections.abc import Mapping
from numbers import Real
from typing import ClassVar

from espnet_pinch.core.attach import TRANSFORMER_LINEARS
from espnet_pinch.errors import UserError


@dataclasses.dataclass(frozen=True)
class MethodSettings:
    """Settings that all methods share.

    Attributes:
        target_sparsity: fraction of the gated weights to prune, 0 <= x < 1; None with ``target_macs``.
        target_macs: fraction of the whole model's multiplications to save, 0 <= x < 1, for a method that prunes whole
            units; None with ``target_sparsity``.
        layers: regular expression that the names of the gated linear layers match.
    """

    takes_macs: ClassVar[bool] = False  # whether the target may be one of multiplications

    target_sparsity: float | None = 0.65
    target_macs: float | None = None
    layers: str = TRANSFORMER_LINEARS

    @property
    def target(self) -> float:
        """The target, a fraction, whichever of the two is given."""
        given = self.target_macs if self.target_sparsity is None else self.target_sparsity
        assert given is not None  # as checked
        return given

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
        if self.target_sparsity is not None:
            check_target_sparsity(self.target_sparsity)
        else:
            check_target_sparsity(self.target_macs, "target_macs")
            if not self.takes_macs:
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


def check_number(name, value, above=None):
    """``value`` if it is finite, at least 0, and over ``above`` if that is given; raises UserError otherwise."""
    if not _is_number(value):
        hint = ""
        if isinstance(value, str):
            hint = " (YAML reads 2e-5 as text: write 2.0e-5)"
        raise UserError(f"{name} must be a number, not {shown(value)}{hint}")
    if not 0 <= value < 1e300 or (above is not None and value <= above):
        raise UserError(
            f"{name} must be finite and {'over' if above is not None else 'at least'} 0, not {shown(value)}"
        )
    return value


def check_flag(name, value):
    """Raise UserError unless ``value`` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, not {shown(value)}")


def check_count(name, value):
    """Raise UserError unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number over 0, not {shown(value)}")


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
