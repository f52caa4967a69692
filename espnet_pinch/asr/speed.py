"""How long models take for an utterance, side by side."""

import time
from collections.abc import Sequence

import torch

from espnet_pinch.asr.model import PruningASRModel

SECONDS = 10  # of audio, noise


@torch.inference_mode()
def forward_seconds(models: Sequence[PruningASRModel], repeats: int = 5) -> list[float]:
    """Seconds of each model from the waveform to the logits of one utterance of 10 s, on the device they are on.

    The models take turns, so that other load of the machine affects all alike. The best of ``repeats`` counts.
    """
    best = [float("inf")] * len(models)
    for turn in range(repeats + 1):
        for i, model in enumerate(models):
            device = next(model.parameters()).device
            rate = model.frontend.processing.sampling_rate
            speech = torch.randn(1, SECONDS * rate, generator=torch.Generator().manual_seed(0)).to(device)
            lengths = torch.tensor([speech.shape[1]], device=device)
            begin = time.perf_counter()
            model.ctc.ctc_lo(model.encode(speech, lengths)[0])
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                best[i] = min(best[i], time.perf_counter() - begin)
    return best
