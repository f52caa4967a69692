"""Praat's TextGrid, the long text form: one interval tier, "words"; an interval without a word has an empty text."""

from espnet_pinch.transcript.format import TranscriptFormat, register, silences
from espnet_pinch.transcript.words import Transcript


@register
class TextGrid(TranscriptFormat):
    name = "textgrid"
    suffix = ".TextGrid"
    summary = "Praat's TextGrid, one tier of words"
    place = 60

    def write(self, transcript: Transcript) -> str:
        intervals = list(silences(transcript))
        lines = [
            'File type = "ooTextFile"',
            'Object class = "TextGrid"',
            "",
            "xmin = 0",
            f"xmax = {transcript.seconds:.6f}",
            "tiers? <exists>",
            "size = 1",
            "item []:",
            "    item [1]:",
            '        class = "IntervalTier"',
            '        name = "words"',
            "        xmin = 0",
            f"        xmax = {transcript.seconds:.6f}",
            f"        intervals: size = {len(intervals)}",
        ]
        for number, (start, end, text) in enumerate(intervals, 1):
            lines += [
                f"        intervals [{number}]:",
                f"            xmin = {start:.6f}",
                f"            xmax = {end:.6f}",
                '            text = "{}"'.format(text.replace('"', '""')),
            ]
        return "\n".join(lines) + "\n"
