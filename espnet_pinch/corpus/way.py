"""The base class of the ways in, and all of them by name.

A way in reads what a corpus says of its utterances. It opens no sound file. It is a class in a file of
``espnet_pinch/corpus/ways``, decorated with ``register``. Nothing else lists the ways in.
"""

import abc
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from espnet_pinch.corpus import ways as package
from espnet_pinch.data.audio import is_archived
from espnet_pinch.plugins import in_order


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An utterance, as a corpus states it.

    Attributes:
        audio: a sound file, or ``file.ark:offset``; absolute.
        text: its transcript, in any spacing.
        place: where the corpus says so, for messages: "table.tsv, line 12".
        id: its name; "" gives it one of its speaker, its sound file and its times.
        speaker: "" if it is not known.
        split: the part of the corpus that it belongs to; "" if the corpus has none.
        start, end: seconds of the sound file at which it begins and ends; None is the file's end.
        channel: of the sound file, from 0; None mixes all channels.
        recording: the corpus' own name of what the utterance is a part of; "" if it is ``audio``.
    """

    audio: str
    text: str
    place: str
    id: str = ""
    speaker: str = ""
    split: str = ""
    start: float = 0.0
    end: float | None = None
    channel: int | None = None
    recording: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a way in is asked for.

    Attributes:
        source: the value of its option, absolute.
        columns: ``{name of ours: name in the corpus}``, of columns that have other names there.
        wants: whether any set of the recipe takes a split of this name. A way that reads a file for each split asks
            before it reads one.
        say: takes a line for the user.
    """

    source: Path
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wants: Callable[[str], bool] = lambda split: True
    say: Callable[[str], None] = print


class Way(abc.ABC):
    """A way in.

    Attributes:
        name: of its option.
        takes: what the option takes, "DIR" or "FILE".
        summary: what that holds, for ``--help``; a line for each line there.
        has_columns: whether what states the utterances has named columns.
        patterns: names of the files in it that state the utterances; when they change it is read again.
        place: its position in lists.
    """

    name: ClassVar[str]
    takes: ClassVar[str] = "DIR"
    summary: ClassVar[str]
    has_columns: ClassVar[bool] = False
    patterns: ClassVar[tuple[str, ...]]
    place: ClassVar[int] = 100

    @abc.abstractmethod
    def rows(self, asked: Asked) -> Iterator[Row]:
        """The utterances, one after the other; they need not be held in memory.

        Raises:
            OSError: a file cannot be read.
            UserError: the corpus is not as this way expects it; the message names the file and the line.
        """

    def file_of(self, audio: str) -> str:
        """The file that changes when the audio of a row does."""
        return audio.rpartition(":")[0] if is_archived(audio) else audio

    def sound_file(self, audio: str) -> contextlib.AbstractContextManager[str]:
        """The path of a sound file with the audio of a row. In archives it is read elsewhere.

        Raises:
            OSError: there is none.
        """
        return contextlib.nullcontext(audio)


_found: dict[str, Way] = {}


def register(build: type[Way]) -> type[Way]:
    """Decorate a subclass of ``Way`` to register it under its ``name``."""
    _found[build.name] = build()
    return build


def all_ways() -> dict[str, Way]:
    """``{name: way in}``, sorted by ``place`` and name."""
    return in_order(package, _found)


def beside(folder: Path, path: str) -> str:
    """A path seen from a folder; an address of the network stays as it is, and is refused later."""
    return path if "://" in path else str(folder / path)


def find_path(path: str, folder: Path, found: list[Path]) -> str:
    """A path that a file in ``folder`` names, made absolute.

    A relative path is seen from the first of these in which it exists: the folder that the program runs in (a
    recipe's), ``folder``, the folders above it. Corpora were made in a folder of their own, and moved as a whole.
    An address of the network stays as it is, and is refused later.

    Args:
        found: where the paths before it were found; this one is looked for there first.
    """
    if os.path.isabs(path) or "://" in path:
        return path
    places = [*found, Path.cwd(), folder, *folder.parents]
    file = path.rpartition(":")[0] if is_archived(path) else path
    place = next((place for place in places if os.path.exists(place / file)), folder)
    if place not in found and os.path.exists(place / file):
        found.append(place)
    return str(place / path)
