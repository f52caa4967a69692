"""Subtitle cues: the words of a transcript, cut to what fits on a screen and can be read there.

The limits are those usual for subtitles. A cue has at most two lines of 42 characters and at most 7 seconds. A pause of
a second or more ends a cue. A cue stays for at least a second, or until the next one begins. A word of more than 42
characters has a line of its own, and is not cut.
"""

import textwrap
from typing import NamedTuple

from espnet_pinch.transcript.words import Transcript, Word

LINE = 42  # characters of a line
LINES = 2
LONGEST = 7.0  # seconds from the first word's start to the last word's end
SHORTEST = 1.0  # seconds
PAUSE = 1.0  # seconds between two words that end a cue


class Cue(NamedTuple):
    """A subtitle.

    Attributes:
        start, end: seconds.
        lines: at most ``LINES``.
    """

    start: float
    end: float
    lines: list[str]


def cues_of(transcript: Transcript) -> list[Cue]:
    """The cues of a transcript, in the order of time. They do not overlap."""
    groups: list[list[Word]] = []
    for word in transcript.words:
        if groups and _fits([*groups[-1], word]):
            groups[-1].append(word)
        else:
            groups.append([word])
    following = [group[0].start for group in groups[1:]] + [transcript.seconds]
    return [
        Cue(group[0].start, max(group[-1].end, min(group[0].start + SHORTEST, limit)), _lines(group))
        for group, limit in zip(groups, following)
    ]


def _lines(words: list[Word]) -> list[str]:
    return textwrap.wrap(" ".join(word.text for word in words), LINE, break_long_words=False, break_on_hyphens=False)


def _fits(words: list[Word]) -> bool:
    """Whether words, of which all but the last are a cue, are one with the last."""
    return (
        words[-1].start - words[-2].end < PAUSE
        and words[-1].end - words[0].start <= LONGEST
        and len(_lines(words)) <= LINES
    )
