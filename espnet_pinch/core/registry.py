"""Pruning methods by name."""

import dataclasses
from collections.abc import Mapping

from espnet_pinch.core.magnitude import MixedSparsity, UniformPruning, read_layer_sparsities
from espnet_pinch.core.method import Dense, PruningMethod
from espnet_pinch.core.nas import NasChannels
from espnet_pinch.core.pinch import Pinch
from espnet_pinch.core.settings import (
    DenseSettings,
    MagnitudeSettings,
    MethodSettings,
    NasSettings,
    PinchSettings,
    check_keys,
    shown,
)

# Name: class, settings.
_METHODS = {
    "dense": (Dense, DenseSettings),
    "ump": (UniformPruning, MethodSettings),
    "mixed_sparsity": (MixedSparsity, MagnitudeSettings),
    "nas_cp": (NasChannels, NasSettings),
    "pinch": (Pinch, PinchSettings),
}
METHODS = tuple(_METHODS)
DEFAULT_METHOD = "pinch"  # of a block that names none

_COMMON = {field.name for field in dataclasses.fields(MethodSettings)}


def check_method(name) -> str:
    """``name`` if it is a pruning method; otherwise ValueError."""
    if name not in METHODS:
        raise ValueError(f"unknown pruning method {shown(name)}; there is: {', '.join(METHODS)}")
    return name


def build_method(block: Mapping) -> PruningMethod:
    """The pruning method of a YAML's ``pruning:`` block, see ``espnet_pinch.core.settings``.

    Raises:
        ValueError: unknown method, unknown setting or a setting out of its range.
    """
    check_keys(block, {"method", *_COMMON, *METHODS}, "the pruning block")
    name = check_method(block.get("method", DEFAULT_METHOD))
    for other, (_, settings) in _METHODS.items():
        own = {field.name for field in dataclasses.fields(settings)} - _COMMON
        check_keys(block.get(other) or {}, own, f"the pruning block's {other}")
    return _METHODS[name][0](**{key: block[key] for key in _COMMON if key in block}, **(block.get(name) or {}))


def self_contained(block: Mapping) -> dict:
    """``block`` with the layer sparsities themselves where it names a file to read them from."""
    if block.get("method") != "mixed_sparsity":
        return dict(block)
    own = block.get("mixed_sparsity") or {}
    return {**block, "mixed_sparsity": {"layer_sparsities": read_layer_sparsities(own.get("layer_sparsities"))}}
