"""A JSON list: an object for each recording, with its words."""

import json

from espnet_pinch.transcript.format import TranscriptFormat, register
from espnet_pinch.transcript.words import Transcript


@register
class Json(TranscriptFormat):
    name = "json"
    suffix = ".json"
    summary = "a list, with the words' times in seconds and their confidences"
    place = 20
    several = True
    start = "[\n  "
    between = ",\n  "
    end = "\n]\n"
    empty = "[]\n"

    def write(self, transcript: Transcript) -> str:
        element = {
            "audio": transcript.audio,
            "text": transcript.text,
            "seconds": round(transcript.seconds, 3),
            "words": [
                {
                    "word": word.text,
                    "start": round(word.start, 3),
                    "end": round(word.end, 3),
                    "confidence": round(word.confidence, 4),
                }
                for word in transcript.words
            ],
        }
        return json.dumps(element, ensure_ascii=False)
