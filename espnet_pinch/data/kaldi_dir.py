"""Kaldi data directories: ``wav.scp text utt2spk spk2utt utt2dur utt2num_samples``, in the order of LC_ALL=C."""

import codecs
import contextlib
import dataclasses
import itertools
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from espnet_pinch.errors import UserError
from espnet_pinch.files import whole_folder
from espnet_pinch.unreadable import POINTER, is_pointer

SOURCES = ("wav.scp", "text", "utt2spk")  # the files that a recipe's data.sh must leave
FILES = (*SOURCES, "spk2utt", "utt2dur", "utt2num_samples")
RATE = 16000  # Hz, the sample rate of the upstreams


@dataclasses.dataclass(frozen=True, slots=True)
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


_LINES: dict[str, Callable[[Utterance], object]] = {  # what follows the id
    "wav.scp": lambda u: u.audio,
    "text": lambda u: u.text,
    "utt2spk": lambda u: u.speaker,
    "utt2dur": lambda u: repr(u.seconds),
    "utt2num_samples": lambda u: u.samples,
}


def write_data_dir(folder: str | os.PathLike, utterances: Iterable[Utterance]) -> None:
    """Write a data directory. It appears, and replaces an older one, only when it is complete.

    Raises:
        UserError: there is no utterance, an id is there twice, or a field could not be read back unchanged.
    """
    write_sorted(folder, sorted(utterances, key=lambda u: u.id.encode()))


def write_source_dir(folder: str | os.PathLike, utterances: Iterable[Utterance]) -> None:
    """As ``write_data_dir``, but only ``SOURCES``: the rest follows from the audio, which has not been opened."""
    write_sorted(folder, sorted(utterances, key=lambda u: u.id.encode()), SOURCES)


def write_sorted(folder: str | os.PathLike, utterances: Iterable[Utterance], names: Sequence[str] = FILES) -> int:
    """As ``write_data_dir``, of utterances that come in the order of their ids; none of them is held in memory.

    Args:
        names: the files to write, of ``FILES``.

    Returns: the number of utterances.

    Raises:
        UserError: as ``write_data_dir``; or the utterances are not sorted.
    """
    folder = Path(folder)
    with whole_folder(folder) as new:
        return write_files(utterances, {name: new / name for name in names}, folder)


def write_files(utterances: Iterable[Utterance], paths: Mapping[str, Path], folder: Path) -> int:
    """Write files of a data directory, one utterance after the other.

    Holds the ids in memory for ``spk2utt`` alone, by speaker.

    Args:
        utterances: in the order of their ids.
        paths: ``{name in FILES: where to write it}``.
        folder: the data directory, for messages.

    Returns: the number of utterances.

    Raises:
        UserError: as ``write_sorted``.
    """
    by_speaker: dict[str, list[str]] = {}
    last, count = b"", 0
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(open(path, "w", encoding="utf-8", newline="\n"))
            for name, path in paths.items()
            if name in _LINES
        }
        for count, u in enumerate(utterances, 1):
            check_fields(u, folder)
            id_ = u.id.encode()
            if count > 1 and id_ <= last:
                wrong = "is there twice" if id_ == last else "is not in the order of the ids (LC_ALL=C sort)"
                raise UserError(f"{folder}: utterance {u.id} {wrong}")
            last = id_
            for name, file in files.items():
                file.write(f"{u.id} {_LINES[name](u)}\n")
            if "spk2utt" in paths:
                by_speaker.setdefault(u.speaker, []).append(u.id)
    if not count:
        raise UserError(f"no utterance left for {folder}")
    if "spk2utt" in paths:
        with open(paths["spk2utt"], "w", encoding="utf-8", newline="\n") as file:
            for speaker in sorted(by_speaker, key=str.encode):
                file.write(f"{speaker} {' '.join(by_speaker[speaker])}\n")
    return count


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
    """``{first field: rest of the line}`` of a text file.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: as ``read_lines``; or a key is there twice.
    """
    table: dict[str, str] = {}
    for number, (key, rest) in enumerate(read_lines(path), 1):
        if key in table:
            raise UserError(f"{path}, line {number}: {key} is there twice")
        table[key] = rest
    return table


def read_lines(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """The first field and the rest of each line. Only a new line ends a line, as in Kaldi and ESPnet.

    A byte order mark at the start and Windows line ends are allowed; they do not become part of the text.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not UTF-8 or is a Git LFS pointer, or a line is empty.
    """
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                if is_pointer(raw):
                    raise UserError(f"{path} {POINTER}")
                raw = raw.removeprefix(codecs.BOM_UTF8)
            try:
                key, *rest = raw.removesuffix(b"\n").decode().split(maxsplit=1) or [""]
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, line {number} is not UTF-8 text: {error}") from None
            if not key:
                raise UserError(f"{path}, line {number} is empty")
            yield key, rest[0].rstrip() if rest else ""


def read_data_dir(folder: str | os.PathLike) -> list[Utterance]:
    """The utterances of a data directory, see ``iterate_data_dir``."""
    return list(iterate_data_dir(folder))


def iterate_data_dir(folder: str | os.PathLike) -> Iterator[Utterance]:
    """The utterances of a data directory, one after the other; none is held in memory.

    Every file must exist and have the same ids in the same sorted order.

    Raises:
        FileNotFoundError, UserError: the directory is not complete; the message names the file and the id.
    """
    folder = Path(folder)
    names = ("wav.scp", "text", "utt2spk", "utt2num_samples", "utt2dur")
    for id_, audio, text, speaker, count, seconds in read_joined(folder, names):
        where = f"{folder}, utterance {id_}"
        samples = _positive(count, int, f"{where}: utt2num_samples")
        rate = round(samples / _positive(seconds, float, f"{where}: utt2dur"))
        yield Utterance(id_, audio, text, speaker, samples, rate)


def iterate_source_dir(folder: Path) -> Iterator[Utterance]:
    """The utterances of a directory that has ``SOURCES`` alone, with 0 samples: their audio is not opened.

    Raises:
        FileNotFoundError, UserError: as ``read_joined``; or the directory has segments.
    """
    if (folder / "segments").exists():
        raise UserError(f"{folder}/segments: the recipe cuts no audio here; ./run.sh --kaldi does, see docs/data.md")
    for id_, audio, text, speaker in read_joined(folder, SOURCES):
        yield Utterance(id_, audio, text, speaker, 0)


def read_joined(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Each id with its value in each of several files of a data directory, read side by side.

    Raises:
        FileNotFoundError: a file does not exist.
        UserError: the ids differ, are not sorted as LC_ALL=C sorts them or are there twice, or as in ``read_lines``.
            The message names the file and the id.
    """
    rows = [read_lines(folder / name) for name in names]
    last = b""
    for number, lines in enumerate(itertools.zip_longest(*rows), 1):
        first = lines[0]
        for name, line in zip(names[1:], lines[1:]):
            if (line and line[0]) != (first and first[0]):
                _check_order(folder / names[0])
                _check_order(folder / name)
                odd = min((entry[0] for entry in (first, line) if entry), key=str.encode)
                raise UserError(f"{folder}/{name} and {names[0]} differ in their ids: {odd}")
        last = _in_order(last, first[0], folder / names[0], number)
        yield first[0], *(line[1] for line in lines)


def _check_order(path: Path) -> None:
    """Raise UserError if the ids of a file are not sorted, or one is there twice."""
    last = b""
    for number, (id_, _) in enumerate(read_lines(path), 1):
        last = _in_order(last, id_, path, number)


def _in_order(last: bytes, id_: str, path: Path, number: int) -> bytes:
    """The id of a line, encoded. Raises UserError unless it is behind that of the line before it."""
    now = id_.encode()
    if now <= last:
        wrong = "is there twice" if now == last else "is not sorted (LC_ALL=C sort -k 1,1)"
        raise UserError(f"{path}, line {number}: {id_} {wrong}")
    return now


def _positive(text: str, kind: type, where: str):
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise UserError(f"{where} must be a number over 0, not {text!r}")
    return value
