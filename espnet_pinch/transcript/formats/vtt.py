"""WebVTT subtitles. The cues are those of ``espnet_pinch.transcript.cues``."""

from espnet_pinch.transcript.cues import cues_of
from espnet_pinch.transcript.format import TranscriptFormat, clock, register
from espnet_pinch.transcript.words import Transcript


@register
class WebVTT(TranscriptFormat):
    name = "vtt"
    suffix = ".vtt"
    summary = "WebVTT subtitles"
    place = 40
    start = "WEBVTT\n"

    def write(self, transcript: Transcript) -> str:
        return "".join(
            f"\n{clock(cue.start, '.')} --> {clock(cue.end, '.')}\n" + "".join(f"{_escaped(x)}\n" for x in cue.lines)
            for cue in cues_of(transcript)
        )


def _escaped(line: str) -> str:
    """A line without what WebVTT reads as a tag, a character reference or an arrow."""
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
