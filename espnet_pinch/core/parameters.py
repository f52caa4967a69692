"""How many parameters a folded model has, in ``parameters.json`` of its folder: what the file holds, and reading it."""

import dataclasses
import os

from espnet_pinch.errors import UserError
from espnet_pinch.files import from_json, read_json


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """Weights of a gated layer.

    Attributes:
        weights: all of them, 1 or more.
        pruned: those that are zero.
    """

    weights: int
    pruned: int

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that is pruned."""
        return self.pruned / self.weights


@dataclasses.dataclass(frozen=True)
class Width:
    """Units of a group: heads of an attention, channels of a feed-forward network, filters of a convolution.

    Attributes:
        kind: "heads", "channels" or "filters".
        left: units that are left, 1 or more.
        units: units before.
    """

    kind: str
    left: int
    units: int


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Counts of a folded model. The fields are the keys of the file, in its order.

    Attributes:
        sparsity: pruned over gated weights, in [0, 1].
        gated: weights of the gated layers.
        pruned: those of them that are zero.
        params_total: parameters of the upstream and the CTC head.
        params_kept: the same without the pruned weights.
        layers: of every gated layer, by its name in the upstream.
        extra_trained_parameters: what the method has trained besides the model's own, such as thresholds.
        params_stored: parameters in model.pth; fewer than ``params_total`` where whole channels were removed.
        macs: multiplications of the upstream on 10 s of audio, zeros included; None in files of earlier releases.
        macs_total: the same before anything was removed.
        widths: of every group, by the name of its module, where whole units were pruned; empty otherwise.
    """

    sparsity: float
    gated: int
    pruned: int
    params_total: int
    params_kept: int
    layers: dict[str, LayerCount]
    extra_trained_parameters: int
    params_stored: int
    macs: float | None = None
    macs_total: float | None = None
    widths: dict[str, Width] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Parameters":
        """The counts in a ``parameters.json``.

        Raises:
            UserError: it lacks a key.
        """
        try:
            values = read_json(path)
            widths = {name: from_json(Width, width) for name, width in values.get("widths", {}).items()}
            return from_json(cls, {**values, "layers": read_layers(path), "widths": widths})
        except KeyError as error:
            raise UserError(f"{path} has no {error.args[0]}; fold the model again with stage 4") from None


def read_layers(path: str | os.PathLike) -> dict[str, LayerCount]:
    """The layers in a ``parameters.json``, by name.

    Raises:
        KeyError: they are not there, or one lacks a key.
    """
    return {name: from_json(LayerCount, counts) for name, counts in read_json(path)["layers"].items()}
