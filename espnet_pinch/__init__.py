"""One-pass compression of speech foundation models with sparsity-aware self-pinching gates."""

__version__ = "0.1.0"

from espnet_pinch.core.methods.pinch import Pinch

__all__ = ["Pinch", "load"]


def __getattr__(name: str):
    if name == "load":  # imported only on demand: it needs ESPnet and transformers, and the core needs neither
        from espnet_pinch.export.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
