"""A line for each recording: its name, a tab, the transcript."""

import re

from espnet_pinch.transcript.format import TranscriptFormat, register
from espnet_pinch.transcript.words import Transcript


@register
class Text(TranscriptFormat):
    name = "text"
    suffix = ".txt"
    summary = r"lines 'FILE<TAB>TEXT'; a tab or a new line in a file's name is written as \t, \n"
    place = 10
    several = True

    def write(self, transcript: Transcript) -> str:
        name = re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], transcript.audio)
        return f"{name}\t{transcript.text}\n"
