"""SubRip subtitles. The cues are those of ``espnet_pinch.transcript.cues``."""

from espnet_pinch.transcript.cues import cues_of
from espnet_pinch.transcript.format import TranscriptFormat, clock, register
from espnet_pinch.transcript.words import Transcript


@register
class SubRip(TranscriptFormat):
    name = "srt"
    suffix = ".srt"
    summary = "SubRip subtitles"
    place = 30

    def write(self, transcript: Transcript) -> str:
        blocks = (
            f"{number}\n{clock(cue.start, ',')} --> {clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n"
            for number, cue in enumerate(cues_of(transcript), 1)
        )
        return "\n".join(blocks)
