"""The mask of frames, in whole numbers, while a model is exported.

transformers divides numbers of samples as floats. A runtime that computes in bfloat16 rounds them, so that the mask is
some frames off, or the graph fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from espnet_pinch.asr.frontend import UpstreamFrontend


@contextmanager
def whole_frames(frontend: UpstreamFrontend) -> Iterator[None]:
    """Inside the block, the upstream makes its mask of frames from that of samples without a float."""
    upstream, family = frontend.upstream, frontend.family

    def mask_of_frames(length: int, mask: Tensor, add_adapter: bool | None = None) -> Tensor:
        """(batch, length), True for a frame; ``mask`` is (batch, samples), 1 for a sample."""
        frames = family.frames_of(upstream.config, mask.sum(-1))
        return torch.arange(length, device=mask.device) < frames[:, None]

    upstream._get_feature_vector_attention_mask = mask_of_frames
    try:
        yield
    finally:
        del upstream._get_feature_vector_attention_mask
