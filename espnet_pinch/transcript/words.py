"""A transcript and its words."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a recording.

    Attributes:
        text: without white space.
        start, end: seconds from the beginning of the recording. Words do not overlap.
        confidence: estimated probability that the word is right, 0 to 1.
    """

    text: str
    start: float
    end: float
    confidence: float


@dataclasses.dataclass(frozen=True)
class Transcript:
    """What was said in a recording.

    Attributes:
        audio: name of the recording, printable.
        text: the words, with a space between two.
        seconds: length of the recording.
        words: in the order of time.
    """

    audio: str
    text: str
    seconds: float
    words: tuple[Word, ...]
