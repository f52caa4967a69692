"""One-pass compression of speech foundation models with sparsity-aware self-pinching gates."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from espnet_pinch.core.methods.pinch import Pinch
    from espnet_pinch.export.load import load

__version__ = "0.1.0"

__all__ = ["Pinch", "load"]


def __getattr__(name: str):
    # Imported on demand: ``Pinch`` needs torch, ``load`` ESPnet and transformers. Reading results needs none of them.
    if name == "Pinch":
        from espnet_pinch.core.methods.pinch import Pinch

        return Pinch
    if name == "load":
        from espnet_pinch.export.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
