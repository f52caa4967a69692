"""Spans: which frames a token was found in, and how probable it was there. Words get their times from them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from espnet_pinch.asr.greedy import runs
from espnet_pinch.data.tokens import words_of
from espnet_pinch.transcript.words import Word

# Seconds that a word goes on, at most, after the last frame of its last letter: see ``time_words``.
LONGEST_TAIL = 0.2


class Span(NamedTuple):
    """A token of a transcript.

    Attributes:
        token: its index in the token list.
        start, end: its first frame, and the frame after its last.
        probability: the largest that the model gives the token in these frames.
    """

    token: int
    start: int
    end: int
    probability: float

    def later(self, frames: int) -> "Span":
        """The same span in a recording in which ``frames`` come before."""
        return self._replace(start=self.start + frames, end=self.end + frames)


def spans_of(path: Tensor, log_probs: Tensor, blank: int) -> list[Span]:
    """The spans of a path.

    Args:
        path: (frames,) index of a token for each frame.
        log_probs: (frames, tokens), natural logarithms.
        blank: index of the blank.
    """
    probabilities = log_probs.gather(1, path[:, None])[:, 0].exp().tolist()
    return [Span(token, start, end, max(probabilities[start:end])) for token, start, end in runs(path, blank).tolist()]


def time_words(spans: Sequence[Span], tokens: Sequence[str], times: np.ndarray) -> list[Word]:
    """The words of a recording, with times and confidences.

    A CTC model names a letter in few frames, as soon as it is sure, and says blank while the sound goes on. So a word
    ends half-way between its last letter and the next word's first, at most ``LONGEST_TAIL`` after its last letter. The
    confidence is the product of the tokens' probabilities: that all are right if each is right or wrong by itself.
    ``benchmarks/word_times.py`` measures both.

    Args:
        spans: of the whole recording, in order.
        tokens: the token list.
        times: (frames + 1,) seconds at which each frame begins, and at which the last one ends.
    """
    found = words_of(tokens[span.token] for span in spans)
    starts = [float(times[spans[places[0]].start]) for _, places in found]
    words = []
    for (text, places), start, following in zip(found, starts, [*starts[1:], float(times[-1])]):
        last = float(times[spans[places[-1]].end])
        end = last + min((following - last) / 2, LONGEST_TAIL)
        confidence = float(np.prod([spans[i].probability for i in places]))
        words.append(Word(text, start, end, min(confidence, 1.0)))
    return words
