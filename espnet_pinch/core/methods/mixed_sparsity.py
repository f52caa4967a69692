"""Mixed-sparsity: one-shot pruning with the layer sparsities of a finished pinch run (arXiv 2505.22608, section 4)."""

import dataclasses
from collections.abc import Mapping
from numbers import Real
from pathlib import Path

from espnet_pinch.core.one_shot import TOLERANCE, OneShot
from espnet_pinch.core.parameters import read_layers
from espnet_pinch.core.registry import register
from espnet_pinch.core.settings import MethodSettings, shown
from espnet_pinch.errors import UserError


@dataclasses.dataclass(frozen=True)
class MixedSettings(MethodSettings):
    """Settings of Mixed-sparsity.

    Attributes:
        layer_sparsities: ``{layer: sparsity}``, or the folder of a finished run that has them.
    """

    layer_sparsities: Mapping[str, float] | str | None = None


@register(
    "mixed_sparsity",
    title="Mixed-sparsity",
    label="Mixed-sparsity",
    colour="tab:green",
    marker="^",
    from_run="layer_sparsities",
)
class MixedSparsity(OneShot):
    """Prunes every layer once, to the sparsity that a finished one-pass run has found for it, then fine-tunes.

    Args:
        settings: keyword arguments of ``MixedSettings``.

    Raises:
        FileNotFoundError, UserError: as in ``read_layer_sparsities``.
    """

    settings_class = MixedSettings
    settings: MixedSettings

    def __init__(self, **settings):
        super().__init__(**settings)
        self.layer_sparsities = read_layer_sparsities(self.settings.layer_sparsities)

    @staticmethod
    def self_contained(own: Mapping) -> dict:
        return {"layer_sparsities": read_layer_sparsities(own.get("layer_sparsities"))}

    def wanted(self, names: list[str]) -> Mapping[str, float]:
        if set(names) != set(self.layer_sparsities):
            differing = sorted(set(names) ^ set(self.layer_sparsities))
            raise UserError(f"mixed_sparsity: layer_sparsities belong to another model: only one has {differing[0]}")
        weights = {name: self.linears[name].weight.numel() for name in names}
        overall = sum(weights[name] * self.layer_sparsities[name] for name in names) / sum(weights.values())
        if abs(overall - self.settings.target) > TOLERANCE:
            raise UserError(
                f"mixed_sparsity: layer_sparsities give {overall:.4f} over all layers, "
                f"but target_sparsity is {self.settings.target}"
            )
        return self.layer_sparsities


def read_layer_sparsities(source: Mapping[str, float] | str | None) -> dict[str, float]:
    """``{layer: sparsity}`` from ``source``: such a mapping, the folder of a finished run, or its parameters.json.

    Raises:
        FileNotFoundError: the run does not exist or is not finished.
        UserError: ``source`` is None, or it does not hold sparsities of layers.
    """
    if source is None:
        raise UserError(
            "mixed_sparsity takes its layers' sparsities from a finished pinch run at the same target: "
            "give its folder as mixed_sparsity.layer_sparsities"
        )
    if isinstance(source, Mapping):
        for name, value in source.items():
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise UserError(f"mixed_sparsity: the sparsity of {name} must be in [0, 1], not {shown(value)}")
        return dict(source)
    if not isinstance(source, str) or "\0" in source:
        raise UserError(f"mixed_sparsity: layer_sparsities must be a folder or a mapping, not {shown(source)}")
    path = Path(source)
    if path.suffix != ".json":
        path = path / "folded" / "parameters.json"
    if not path.is_file():
        raise FileNotFoundError(f"mixed_sparsity: {path} does not exist; finish the pinch run of that target first")
    try:
        return read_layer_sparsities({name: layer.sparsity for name, layer in read_layers(path).items()})
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
        raise UserError(f"mixed_sparsity: {path} is not the parameters.json of a folded run") from None
