"""CTC greedy search."""

import torch
from torch import Tensor

from espnet_pinch.data.tokens import text_of


def ctc_greedy(frames: Tensor, lengths: Tensor, blank: int = 0) -> list[list[int]]:
    """Best-path decoding: merge repeats, drop blanks.

    Args:
        frames: (batch, frames) index of the best token of each frame.
        lengths: (batch,) number of frames of each utterance.
        blank: index of the blank.

    Returns: token indices of each utterance.

    >>> ctc_greedy(torch.tensor([[0, 5, 5, 0, 5, 7]]), torch.tensor([5]))
    [[5, 5]]
    """
    hypotheses = []
    for row, length in zip(frames.cpu(), lengths.tolist()):
        merged = torch.unique_consecutive(row[:length]).tolist()
        hypotheses.append([token for token in merged if token != blank])
    return hypotheses


def to_text(ids: list[int], tokens: list[str]) -> str:
    """The transcript of token indices, see ``text_of``."""
    return text_of(tokens[i] for i in ids)
