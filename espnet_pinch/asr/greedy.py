"""CTC greedy search."""

import torch
from torch import Tensor


def ctc_greedy(frames: Tensor, lengths: Tensor, blank: int = 0) -> list[list[int]]:
    """Best-path decoding: merge repeats, drop blanks.

    Args:
        frames: (batch, frames) index of the best token of every frame.
        lengths: (batch,) frames of each utterance.
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
    """Join characters, "<space>" as a space; other tokens in angle brackets are not text and are left out."""
    chars = (" " if tokens[i] == "<space>" else tokens[i] for i in ids)
    return " ".join("".join(c for c in chars if not (len(c) > 1 and c.startswith("<"))).split())
