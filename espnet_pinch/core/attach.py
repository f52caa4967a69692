"""Find linear layers by name, and replace them."""

import re

from torch import nn

from espnet_pinch.errors import UserError

# The layers that are gated by default: q, k, v and out of the attention, fc1 and fc2 of the feed-forward network, under
# the names that most speech models in transformers give them.
TRANSFORMER_LINEARS = (
    r"(^|\.)encoder\.layers\.\d+\."
    r"(attention\.(q_proj|k_proj|v_proj|out_proj)|feed_forward\.(intermediate_dense|output_dense))$"
)


def find_linears(model: nn.Module, pattern: str = TRANSFORMER_LINEARS) -> dict[str, nn.Linear]:
    """``{name: nn.Linear}`` for the linear layers whose name matches ``pattern`` (``re.search``), in model order.

    Raises:
        UserError: the pattern is not a regular expression, or it matches no linear layer.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"the pattern {pattern!r} is not a regular expression: {error}") from None
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and regex.search(name)}
    if not found:
        raise UserError(f"no linear layer of {type(model).__name__} has a name that matches {pattern!r}")
    return found


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the submodule ``name`` of ``model`` ("encoder.layers.0.attention.q_proj") by ``new``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
