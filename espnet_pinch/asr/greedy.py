"""CTC greedy search, and what else is done with the path of an utterance: the best token of each frame."""

import torch
from torch import Tensor

from espnet_pinch.data.tokens import text_of


def runs(path: Tensor, blank: int) -> Tensor:
    """The tokens of a path: runs of equal indices, without the blank's.

    Args:
        path: (frames,) index of a token for each frame.
        blank: index of the blank.

    Returns: (runs, 3): index of the token, its first frame, the frame after its last.

    >>> runs(torch.tensor([0, 5, 5, 0, 5]), 0).tolist()
    [[5, 1, 3], [5, 4, 5]]
    """
    tokens, counts = torch.unique_consecutive(path, return_counts=True)
    ends = counts.cumsum(0)
    return torch.stack([tokens, ends - counts, ends], 1)[tokens != blank]


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
    return [runs(row[:length], blank)[:, 0].tolist() for row, length in zip(frames.cpu(), lengths.tolist())]


def to_text(ids: list[int], tokens: list[str]) -> str:
    """The transcript of token indices, see ``text_of``."""
    return text_of(tokens[i] for i in ids)
