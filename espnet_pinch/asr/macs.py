"""Multiplications of a model, counted."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SECONDS = 10  # of the audio that multiplications are counted on, and that models are timed on

# {part of a model: torch's operations that do its multiplications}
PARTS = {
    "convolutions": ("convolution", "_convolution"),
    "linears": ("mm", "addmm"),
    "attention products": ("bmm", "baddbmm"),  # and all whose names hold "attention"
}


def count_macs(model: nn.Module, samples: int = 16000 * SECONDS, channel: bool = False) -> dict[str, float]:
    """Multiplications of a forward pass of one utterance, without computing it: products of matrices, convolutions.

    Args:
        model: takes a waveform. Its weights may be anywhere.
        samples: length of the utterance.
        channel: the model takes waveforms as (batch, 1, samples), not as (batch, samples).

    Returns: ``{module: multiplications}``, of the modules that have some; "" for the whole model.
    """
    top = type(model).__name__
    counts = {name: sum(by_operation.values()) / 2 for name, by_operation in _flops(model, samples, channel).items()}
    return {name.removeprefix(top).removeprefix("."): count for name, count in counts.items() if name.startswith(top)}


def count_by_part(model: nn.Module, samples: int = 16000 * SECONDS, channel: bool = False) -> dict[str, float]:
    """``{part: multiplications}`` of the whole model, for the parts in ``PARTS``; together they are all of them.

    Args:
        model, samples, channel: as ``count_macs``.
    """
    found = dict.fromkeys(PARTS, 0.0)
    for operation, flops in _flops(model, samples, channel)[type(model).__name__].items():
        name = str(operation).rpartition(".")[2]
        attention = "attention products" if "attention" in name else None
        part = attention or next(part for part, operations in PARTS.items() if name in operations)
        found[part] += flops / 2
    return found


def _flops(model: nn.Module, samples: int, channel: bool) -> Mapping[str, Mapping]:
    """``{module, its name behind the class of the model: {operation: multiplications and additions}}``."""
    nothing = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    unsaved = {name: tensor.to("meta") for name, tensor in model.named_buffers() if name not in nothing}
    training = model.training
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            speech = torch.empty((1, 1, samples) if channel else (1, samples), device="meta")
            torch.func.functional_call(model.eval(), {**nothing, **unsaved}, (speech,))
    finally:
        model.train(training)
    return counter.get_flop_counts()
