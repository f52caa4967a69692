"""Pruning methods by name."""

from collections.abc import Mapping

from espnet_pinch.core.method import PruningMethod
from espnet_pinch.core.pinch import Pinch
from espnet_pinch.core.settings import PinchSettings, settings_from

METHODS = ("pinch", "dense")


def check_method(name) -> str:
    """``name`` if it is a pruning method; otherwise ValueError."""
    if name not in METHODS:
        raise ValueError(f"unknown pruning method {name!r}; there is: {', '.join(METHODS)}")
    return name


def build_method(block: Mapping) -> PruningMethod:
    """The pruning method of a YAML's ``pruning:`` block, ``{"method": name, **settings}``.

    Raises:
        ValueError: unknown method, unknown setting or a setting out of its range.
    """
    block = dict(block)
    name = check_method(block.pop("method", "pinch"))
    settings = settings_from(PinchSettings, block)  # dense reads none of them, but a wrong one is still wrong
    if name == "dense":
        return PruningMethod()
    return Pinch(**vars(settings))
