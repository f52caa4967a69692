"""What a search is: from log-probabilities to the tokens of a transcript. Greedy search is here."""

from typing import Protocol

from torch import Tensor

from espnet_pinch.asr.spans import Span, spans_of


class Search(Protocol):
    """Finds the transcripts of a batch."""

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Span]]:
        """
        Args:
            log_probs: (batch, frames, tokens), natural logarithms.
            lengths: (batch,) number of frames of each utterance.

        Returns: the tokens of each utterance's transcript.
        """
        ...


class GreedySearch:
    """The best token of every frame.

    Args:
        blank: index of the blank.
    """

    def __init__(self, blank: int):
        self.blank = blank

    def __call__(self, log_probs: Tensor, lengths: Tensor) -> list[list[Span]]:
        log_probs = log_probs.cpu()
        best = log_probs.argmax(-1)
        return [
            spans_of(path[:length], rows[:length], self.blank)
            for path, rows, length in zip(best, log_probs, lengths.tolist())
        ]
