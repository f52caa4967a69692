"""Kaldi data directories: ``wav.scp text utt2spk spk2utt utt2dur utt2num_samples``, in the order of LC_ALL=C."""

import dataclasses
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_folder
from espnet_pinch.unreadable import POINTER, is_pointer

SOURCES = ("wav.scp", "text", "utt2spk")  # the files that a recipe's data.sh must leave
RATE = 16000  # Hz, the sample rate of the upstreams


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One line of each file of a data directory.

    Attributes:
        id: utterance id. It starts with the speaker, so that both have the same order.
        audio: path of the sound file, or ``file.ark:offset``.
        text: transcript, words separated by one space.
        speaker: LibriSpeech's reader-chapter.
        samples: length of the audio in samples.
        rate: sample rate in Hz.
    """

    id: str
    audio: str
    text: str
    speaker: str
    samples: int
    rate: int = RATE

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


def write_data_dir(folder: str | os.PathLike, utterances: Iterable[Utterance]) -> None:
    """Write a data directory. It appears, and replaces an older one, only when it is complete.

    Raises:
        UserError: there is no utterance, an id is there twice, or a field could not be read back unchanged.
    """
    folder = Path(folder)
    _write(folder, data_files(_sorted(folder, utterances)))


def write_source_dir(folder: str | os.PathLike, utterances: Iterable[Utterance]) -> None:
    """As ``write_data_dir``, but only ``SOURCES``: the rest follows from the audio, which has not been opened."""
    folder = Path(folder)
    files = data_files(_sorted(folder, utterances))
    _write(folder, {name: files[name] for name in SOURCES})


def _sorted(folder: Path, utterances: Iterable[Utterance]) -> list[Utterance]:
    rows = sorted(utterances, key=lambda u: u.id.encode())
    if not rows:
        raise UserError(f"no utterance left for {folder}")
    for u in rows:
        check_fields(u, folder)
    for first, second in zip(rows, rows[1:]):
        if first.id == second.id:
            raise UserError(f"{folder}: utterance {first.id} is there twice")
    return rows


def _write(folder: Path, files: dict[str, str]) -> None:
    with whole_folder(folder) as new:
        for name, text in files.items():
            (new / name).write_text(text, encoding="utf-8")


def data_files(rows: list[Utterance]) -> dict[str, str]:
    """The content of each file of a data directory; the utterances keep their order."""
    by_speaker = defaultdict(list)
    for u in rows:
        by_speaker[u.speaker].append(u.id)
    lines = {
        "wav.scp": (f"{u.id} {u.audio}" for u in rows),
        "text": (f"{u.id} {u.text}" for u in rows),
        "utt2spk": (f"{u.id} {u.speaker}" for u in rows),
        "spk2utt": (f"{s} {' '.join(ids)}" for s, ids in sorted(by_speaker.items(), key=lambda i: i[0].encode())),
        "utt2dur": (f"{u.id} {u.seconds!r}" for u in rows),
        "utt2num_samples": (f"{u.id} {u.samples}" for u in rows),
    }
    return {name: "".join(f"{line}\n" for line in of_file) for name, of_file in lines.items()}


def check_fields(u: Utterance, folder: Path) -> None:
    """Raise UserError for a field that would break its line, as ESPnet and Kaldi read lines."""
    for name, value in (("id", u.id), ("speaker", u.speaker)):
        if value.split() != [value] or has_control(value):
            raise UserError(
                f"{folder}: the {name} {value!r} of utterance {u.id!r} must be one word of visible characters"
            )
    if u.text != " ".join(u.text.split()):
        raise UserError(f"{folder}: the transcript of utterance {u.id} must have single spaces only: {u.text!r}")
    if not u.audio or u.audio != u.audio.strip() or "\n" in u.audio or "\r" in u.audio:
        raise UserError(
            f"{folder}: the audio path of utterance {u.id} is empty, has a space at an end or a new line: {u.audio!r}"
        )
    for value in (u.id, u.speaker, u.text, u.audio):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{folder}: utterance {u.id!r} has a field that is not UTF-8: {value!r}") from None


def has_control(text: str) -> bool:
    """Whether ``text`` has a control character or a byte order mark."""
    return any(unicodedata.category(char) == "Cc" or char == "\ufeff" for char in text)


def read_table(path: str | os.PathLike) -> dict[str, str]:
    """``{first field: rest of the line}`` of a text file. Only a new line ends a line, as in Kaldi and ESPnet.

    A byte order mark at the start and Windows line ends are allowed; they do not become part of the text.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not UTF-8 or is a Git LFS pointer, a line is empty, or a key is there twice.
    """
    table = {}
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {place} is not UTF-8 text: {error}") from None
    if is_pointer(text[:100].encode()):
        raise UserError(f"{path} {POINTER}")
    lines = text.split("\n")
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        key, *rest = line.split(maxsplit=1)[:2] or [""]
        if not key:
            raise UserError(f"{path}, line {number} is empty")
        if key in table:
            raise UserError(f"{path}, line {number}: {key} is there twice")
        table[key] = rest[0].rstrip() if rest else ""
    return table


def read_data_dir(folder: str | os.PathLike) -> list[Utterance]:
    """The utterances of a data directory. Every file must exist and have the same ids in the same sorted order.

    Raises:
        FileNotFoundError, UserError: the directory is not complete; the message names the file and the id.
    """
    folder = Path(folder)
    tables = read_tables(folder, ("wav.scp", "text", "utt2spk", "utt2num_samples", "utt2dur"))
    rows = []
    for id_ in tables["wav.scp"]:
        where = f"{folder}, utterance {id_}"
        samples = _positive(tables["utt2num_samples"][id_], int, f"{where}: utt2num_samples")
        rate = round(samples / _positive(tables["utt2dur"][id_], float, f"{where}: utt2dur"))
        row = Utterance(id_, tables["wav.scp"][id_], tables["text"][id_], tables["utt2spk"][id_], samples, rate)
        rows.append(row)
    return rows


def read_source_dir(folder: Path) -> list[Utterance]:
    """The utterances of a directory that has ``SOURCES`` alone, with 0 samples: their audio is not opened.

    Raises:
        FileNotFoundError, UserError: as ``read_tables``; or the directory has segments.
    """
    if (folder / "segments").exists():
        raise UserError(f"{folder}/segments: the recipe cuts no audio; give each utterance a sound file of its own")
    audio, text, speaker = read_tables(folder, SOURCES).values()
    return [Utterance(id_, audio[id_], text[id_], speaker[id_], 0) for id_ in audio]


def read_tables(folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The tables of a data directory, ``wav.scp`` first. All must have the same ids, sorted as LC_ALL=C sorts them.

    Raises:
        FileNotFoundError: a file does not exist.
        UserError: the ids differ or are not sorted, or as in ``read_table``. The message names the file and the id.
    """
    tables = {name: read_table(folder / name) for name in names}
    ids = list(tables["wav.scp"])
    for name, table in tables.items():
        if list(table) != ids:
            odd = sorted(set(table) ^ set(ids))
            raise UserError(f"{folder}/{name} and wav.scp differ in their ids: {odd[0] if odd else 'the order'}")
    if ids != sorted(ids, key=str.encode):
        raise UserError(f"{folder}/wav.scp is not sorted (LC_ALL=C sort)")
    return tables


def _positive(text: str, kind: type, where: str):
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise UserError(f"{where} must be a number over 0, not {text!r}")
    return value
