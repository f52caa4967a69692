"""The base class of formats that transcripts are written in, and all formats by name.

A format is a class in a file of ``espnet_pinch/transcript/formats``, decorated with ``register``. Nothing else lists
formats.
"""

import abc
from collections.abc import Iterator
from typing import ClassVar

from espnet_pinch.plugins import in_order
from espnet_pinch.transcript import formats as package
from espnet_pinch.transcript.words import Transcript


class TranscriptFormat(abc.ABC):
    """A format to write transcripts in.

    Attributes:
        name: in ``--format``.
        suffix: ending of a file's name.
        summary: what it is, for ``--help``.
        place: position among the formats in lists.
        several: whether one file can hold the transcripts of several recordings.
        start, between, end: what comes before the first transcript, between two, and after the last.
        empty: what is written if there is no transcript.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    summary: ClassVar[str]
    place: ClassVar[int] = 100
    several: ClassVar[bool] = False
    start: ClassVar[str] = ""
    between: ClassVar[str] = ""
    end: ClassVar[str] = ""
    empty: ClassVar[str] = ""

    @abc.abstractmethod
    def write(self, transcript: Transcript) -> str:
        """One transcript, as text."""


class Writer:
    """Writes transcripts one after the other, so that a reader need not wait for the last.

    Args:
        fmt: the format.
        write: takes what is written.
    """

    def __init__(self, fmt: TranscriptFormat, write):
        self.format, self._write, self._count = fmt, write, 0

    def __call__(self, transcript: Transcript) -> None:
        before = self.format.between if self._count else self.format.start
        self._write(before + self.format.write(transcript))
        self._count += 1

    def close(self) -> None:
        self._write(self.format.end if self._count else self.format.empty)


def whole(fmt: TranscriptFormat, transcript: Transcript) -> str:
    """A file with one transcript."""
    parts: list[str] = []
    writer = Writer(fmt, parts.append)
    writer(transcript)
    writer.close()
    return "".join(parts)


_found: dict[str, TranscriptFormat] = {}


def register(build: type[TranscriptFormat]) -> type[TranscriptFormat]:
    """Decorate a subclass of ``TranscriptFormat`` to register it under its ``name``."""
    _found[build.name] = build()
    return build


def all_formats() -> dict[str, TranscriptFormat]:
    """``{name: format}``, sorted by ``place`` and name."""
    return in_order(package, _found)


def clock(seconds: float, point: str) -> str:
    """A time as subtitles state it, in whole milliseconds.

    Args:
        point: between seconds and milliseconds.

    >>> clock(3661.0625, ",")
    '01:01:01,062'
    """
    rest, milliseconds = divmod(round(1000 * seconds), 1000)
    rest, whole_seconds = divmod(rest, 60)
    hours, minutes = divmod(rest, 60)
    return f"{hours:02}:{minutes:02}:{whole_seconds:02}{point}{milliseconds:03}"


def silences(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """Start, end and text of all words and, with an empty text, of what lies before, between and after them."""
    at = 0.0
    for word in transcript.words:
        if word.start > at:
            yield at, word.start, ""
        yield word.start, word.end, word.text
        at = word.end
    if transcript.seconds > at:
        yield at, transcript.seconds, ""
