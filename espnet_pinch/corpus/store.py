"""The utterances of a corpus in a file on the disk (SQLite): checked, in any number, and given back by set and id."""

import contextlib
import dataclasses
import math
import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from espnet_pinch.corpus.splits import SPEAKER, Take, point
from espnet_pinch.corpus.way import Row
from espnet_pinch.data.kaldi_dir import has_control
from espnet_pinch.data.problems import Problems
from espnet_pinch.errors import UserError

CHANNELS = 1 << 16  # of a sound file at most
WHOLE, ALL = -1.0, -1  # in the place of an end and of a channel that are None: SQLite's NULLs differ from each other
_TABLE = """CREATE TABLE rows (
    split TEXT, id TEXT, audio TEXT, start REAL, stop REAL, channel INTEGER, text TEXT, speaker TEXT, point REAL,
    place TEXT, recording TEXT, PRIMARY KEY (split, id)) WITHOUT ROWID"""


@dataclasses.dataclass
class Counts:
    """What was noticed while rows were read; none of it is wrong.

    Attributes:
        rows: all of them.
        unknown_speakers: without a speaker.
        empty: with an empty transcript.
        respaced: whose transcripts had tabs, new lines or more than one space between words.
        renamed: whose speakers' names had spaces.
    """

    rows: int = 0
    unknown_speakers: int = 0
    empty: int = 0
    respaced: int = 0
    renamed: int = 0

    def said(self, by: str) -> list[str]:
        """A line for each."""
        lines = [
            (self.unknown_speakers, "have no speaker" + (": sets are made by utterance for them" if by else "")),
            (self.empty, "have an empty transcript"),
            (self.respaced, "had tabs, new lines or several spaces in their transcripts: single spaces now"),
            (self.renamed, "have a speaker with spaces in the name: written with _"),
        ]
        return [f"{count:,} of {self.rows:,} utterances {what}" for count, what in lines if count]


def write_rows(path: Path, rows: Iterable[Row], where: str, by: str = SPEAKER) -> Counts:
    """Check rows and write them to a new file.

    Args:
        path: does not exist, or is empty.
        where: the rows come from, for messages.
        by: what the hash is of that sets are made by, ``SPEAKER`` or ``UTTERANCE``.

    Raises:
        UserError: something is wrong with rows. The message names the first and says how many there are.
    """
    problems, counts = Problems(where), Counts()
    with contextlib.closing(_connect(path)) as base:
        base.execute(_TABLE)
        insert = f"INSERT INTO rows VALUES ({', '.join('?' * 11)})"
        for row in rows:
            counts.rows += 1
            problem, fields = _fields(row, counts, by)
            if not problem:
                try:
                    base.execute(insert, fields)
                except sqlite3.IntegrityError:
                    problem = f"the id {fields[1]} is there twice" + ("" if row.id else "; give the corpus ids")
            if problem:
                problems.add(f"{row.place}: {problem}")
        problems.raise_first()
        if not counts.rows:
            raise UserError(f"{where} has no utterance")
        if by == SPEAKER:
            # The parts of a recording of an unknown speaker belong together.
            base.create_function("point_of", 1, point, deterministic=True)
            base.execute(
                "UPDATE rows SET point = point_of(recording) WHERE speaker = id AND recording IN "
                "(SELECT recording FROM rows GROUP BY recording HAVING COUNT(*) > 1)"
            )
        base.commit()
    return counts


def _connect(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None)
    for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):  # KiB
        base.execute(f"PRAGMA {setting}")
    base.execute("BEGIN")
    return base


def _fields(row: Row, counts: Counts, by: str) -> tuple[str, tuple]:
    """What is wrong with a row, "" if nothing; and its fields in the table."""
    text = " ".join(row.text.split())
    counts.respaced += text != row.text.strip(" ")
    counts.empty += not text
    stated = unicodedata.normalize("NFC", row.speaker)  # a name is the same however its accents are written
    speaker = re.sub(r"\s+", "_", stated)
    counts.renamed += speaker != stated
    counts.unknown_speakers += not speaker
    id_ = row.id or _made_id(row, speaker)
    problem = _problem(row, id_, speaker, text)
    if problem:
        return problem, ()
    key = speaker if by == SPEAKER and speaker else id_
    recording = str(PurePath(row.recording or row.audio))
    end, channel = WHOLE if row.end is None else row.end, ALL if row.channel is None else row.channel
    cut = (row.audio, row.start, end, channel)
    return "", (row.split, id_, *cut, text, speaker or id_, point(key), row.place, recording)


def _made_id(row: Row, speaker: str) -> str:
    """An id for a row without one: its speaker, the name of its recording, and its times in milliseconds."""
    name = re.sub(r"[\s\x00-\x1f]+", "_", PurePath(row.recording or row.audio).stem) or "utterance"
    parts = [name] if name.startswith(speaker) else [speaker, name]
    if row.start or row.end is not None:
        parts += [f"{round(1000 * row.start):08d}"] + ([] if row.end is None else [f"{round(1000 * row.end):08d}"])
    return "-".join(parts + ([] if row.channel is None else [f"{row.channel}"]))


def _problem(row: Row, id_: str, speaker: str, text: str) -> str:
    for name, value in (("id", id_), ("speaker", speaker)):
        if value and (value.split() != [value] or has_control(value)):
            return f"the {name} {value!r} must be one word of visible characters"
    if has_control(text):
        return f"a control character in the transcript {text!r}"
    if "://" in row.audio:
        return f"the audio {row.audio} is an address; only files are read: fetch it first"
    if row.audio.endswith("|") or row.audio.startswith("|"):
        return f"the audio {row.audio!r} is a command; none is run here: write its output to a file first"
    if "\n" in row.audio or "\r" in row.audio or "\0" in row.audio or row.audio != row.audio.strip():
        return f"the audio path {row.audio!r} has a new line, or a space at an end"
    if not math.isfinite(row.start) or row.start < 0:
        return f"the start {row.start:g} s must be 0 or more"
    if row.end is not None and not row.start < row.end < math.inf:
        return f"the end {row.end:g} s must be behind the start {row.start:g} s"
    if row.channel is not None and not 0 <= row.channel < CHANNELS:
        return f"the channel {row.channel:g} must be 0 or more, and under {CHANNELS}"
    for value in (id_, speaker, text, row.audio, row.split):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"a field that is not UTF-8: {value!r}"
    return ""


class Store:
    """Reads what ``write_rows`` has written. Of the rows only those that a set takes count.

    Args:
        path: the file.
        sets: what each set takes; None before that is known.

    Raises:
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path, sets: dict[str, list[Take]] | None = None):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: run stage 1 again (./run.sh --stage 1)")
        self.base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        self._sets = sets or {}

    def close(self) -> None:
        self.base.close()

    def splits(self) -> dict[str, str]:
        """The splits, in the order of their names, and the place of a row of each."""
        return dict(self.base.execute("SELECT split, place FROM rows GROUP BY split ORDER BY split"))

    def speakers(self) -> int:
        return self.base.execute("SELECT COUNT(DISTINCT speaker) FROM rows").fetchone()[0]

    def count(self, name: str) -> tuple[int, int]:
        """Number of utterances and of speakers of a set."""
        where, values = _where(self._sets[name])
        query = f"SELECT COUNT(*), COUNT(DISTINCT speaker) FROM rows WHERE {where}"
        return self.base.execute(query, values).fetchone()

    def shared(self, one: str, other: str) -> tuple[int, int]:
        """How many speakers two sets have in common, and how many sound files."""
        (first, of_first), (second, of_second) = self.where(one), self.where(other)
        found = []
        for field, known in (("speaker", "speaker != id AND "), ("audio", "")):
            query = (
                f"SELECT COUNT(*) FROM (SELECT {field} FROM rows WHERE {known}({first}) "
                f"INTERSECT SELECT {field} FROM rows WHERE {known}({second}))"
            )
            found.append(self.base.execute(query, [*of_first, *of_second]).fetchone()[0])
        return found[0], found[1]

    def require_ids(self) -> None:
        """Raise UserError if a set takes two utterances of one id, from different splits."""
        for name, takes in self._sets.items():
            if len({take.split for take in takes}) < 2:
                continue  # the ids of a split differ
            where, values = self.where(name)
            query = f"SELECT id, MIN(place), MAX(place) FROM rows WHERE {where} GROUP BY id HAVING COUNT(*) > 1 LIMIT 1"
            for id_, one, other in self.base.execute(query, values):
                raise UserError(
                    f"{other}: the id {id_} is there twice in the set {name}, see {one}: take one of their splits "
                    "(--splits), or give other ids"
                )

    def unused(self) -> dict[str, int]:
        """The number of utterances that no set takes, by split."""
        where, values = self._used()
        query = f"SELECT split, COUNT(*) FROM rows WHERE NOT ({where}) GROUP BY split ORDER BY split"
        return dict(self.base.execute(query, values))

    def cuts(self) -> Iterator[tuple[str, float, float, int]]:
        """Audio, start, end (or ``WHOLE``) and channel (or ``ALL``), each once, sorted."""
        where, values = self._used()
        query = f"SELECT DISTINCT audio, start, stop, channel FROM rows WHERE {where} ORDER BY 1, 2, 3, 4"
        return self.base.execute(query, values)

    def audio(self) -> Iterator[str]:
        """The audio of all utterances, each once, sorted."""
        where, values = self._used()
        query = f"SELECT DISTINCT audio FROM rows WHERE {where} ORDER BY 1"
        return (audio for (audio,) in self.base.execute(query, values))

    def place(self, audio: str) -> str:
        """Where the corpus names that audio."""
        return self.base.execute("SELECT place FROM rows WHERE audio = ? LIMIT 1", (audio,)).fetchone()[0]

    def _used(self) -> tuple[str, list]:
        return _where([take for takes in self._sets.values() for take in takes])

    def where(self, name: str) -> tuple[str, list]:
        """The condition of SQL for the rows of a set, and its values."""
        return _where(self._sets[name])


def _where(takes: list[Take]) -> tuple[str, list]:
    values = [value for take in takes for value in (take.split, take.low, take.high)]
    return " OR ".join(["(split = ? AND point >= ? AND point < ?)"] * len(takes)) or "0", values
