"""Multiplications of a model, counted."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

SECONDS = 10  # of the audio that multiplications are counted on, and that models are timed on


def count_macs(model: nn.Module, samples: int = 16000 * SECONDS) -> dict[str, float]:
    """Multiplications of a forward pass of one utterance, without computing it: products of matrices, convolutions.

    Args:
        model: takes a waveform, (batch, samples). Its weights may be anywhere.
        samples: length of the utterance.

    Returns: ``{module: multiplications}``, of the modules that have some; "" for the whole model.
    """
    nothing = {name: torch.empty_like(tensor, device="meta") for name, tensor in model.state_dict().items()}
    unsaved = {name: tensor.to("meta") for name, tensor in model.named_buffers() if name not in nothing}
    training = model.training
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.no_grad():
            speech = torch.empty(1, samples, device="meta")
            torch.func.functional_call(model.eval(), {**nothing, **unsaved}, (speech,))
    finally:
        model.train(training)
    top = type(model).__name__
    counts = {name: sum(by_operation.values()) / 2 for name, by_operation in counter.get_flop_counts().items()}
    return {name.removeprefix(top).removeprefix("."): count for name, count in counts.items() if name.startswith(top)}
