"""One-pass compression of speech foundation models with sparsity-aware self-pinching gates."""

__version__ = "0.1.0"

from espnet_pinch.core.method import parameter_groups
from espnet_pinch.core.pinch import Pinch

__all__ = ["Pinch", "parameter_groups"]
