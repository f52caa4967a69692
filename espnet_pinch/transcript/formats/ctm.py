"""NIST's CTM: a line for each word, "RECORDING 1 START DURATION WORD CONFIDENCE", times in seconds."""

import re

from espnet_pinch.transcript.format import TranscriptFormat, register
from espnet_pinch.transcript.words import Transcript, Word


@register
class Ctm(TranscriptFormat):
    name = "ctm"
    suffix = ".ctm"
    summary = r"NIST's CTM, channel 1; white space in a file's name is written as \x20 and the like"
    place = 50
    several = True

    def write(self, transcript: Transcript) -> str:
        name = re.sub(r"[\s\x00-\x1f]", lambda match: f"\\x{ord(match[0]):02x}", transcript.audio)
        return "".join(f"{name} 1 {_times(word)} {word.text} {word.confidence:.4f}\n" for word in transcript.words)


def _times(word: Word) -> str:
    """Start and duration, rounded so that their sum is the rounded end."""
    return f"{word.start:.3f} {round(word.end, 3) - round(word.start, 3):.3f}"
